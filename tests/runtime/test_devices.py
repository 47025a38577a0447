"""The devices that llama.cpp has found, and those that a machine lends to others."""

from __future__ import annotations

import pytest

from mars_gguf.runtime import devices
from mars_gguf.runtime.devices import CPU, GPU, INTEGRATED_GPU, Device


def test_there_is_a_processor_by_name_and_each_device_once() -> None:
    found = devices.devices()
    assert any(device.type == CPU and device.name and device.description for device in found)
    assert len({device.handle for device in found}) == len(found)


@pytest.mark.parametrize(
    ("types", "lent"),
    [
        ([CPU], [0]),
        ([CPU, GPU], [1]),
        ([INTEGRATED_GPU, 3, CPU, GPU], [0, 3]),
        ([3, CPU, CPU], [1, 2]),  # 3: an accelerator that computes for the processor
    ],
)
def test_gpus_are_lent_and_processors_where_there_is_none(
    types: list[int], lent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [Device(handle, f"{handle}", "", kind) for handle, kind in enumerate(types)]
    monkeypatch.setattr(devices, "devices", lambda: some)
    assert devices.to_lend() == lent
