"""Conversions that are killed, that meet one another, or are given hostile files: nothing is left
half-written, and all end soon."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("resource", reason="no limits on processes there")

from attacks.conversions import Conversions, End, attack, signal
from attacks.fuzzing import FOUR, HOSTILE, gguf, tensor

# Ended from outside ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> Conversions:
    return Conversions(tmp_path_factory.mktemp("conversions"))


# Steps counted from the last: the card takes its place at -7, the plot at -5, the vector at -3.
@pytest.mark.parametrize(
    ("by", "step", "found"),
    [
        (signal.SIGKILL, None, "all"),
        (signal.SIGKILL, -5, "told apart with what was measured"),
        (signal.SIGINT, -5, "all newer with what was measured"),
        (signal.SIGINT, -12, "all older with what was measured"),
    ],
)
def test_an_ended_conversion_leaves_whole_files_and_goes_on(
    by: signal.Signals, step: int | None, found: str, conversions: Conversions
) -> None:
    at = End(by, conversions.steps + step) if step else End(by, seconds=conversions.seconds / 2)
    assert attack(conversions, at).startswith(found)


# Hostile files -----------------------------------------------------------------------------------

MB = 1 << 20
DEFLATED = zipfile.ZIP_DEFLATED


def safetensors(
    header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None
) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def packed(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as z:
        for name, data in members:
            z.writestr(name, data)
    return file.getvalue()


def npy(shape: str, data: bytes = b"", descr: str = "'<f4'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz(content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    return packed(("direction.npy", content), method=method)


def said_small(content: bytes) -> bytes:
    """An .npz whose headers say that its one member unpacks to 64 bytes."""
    data = npz(content, method=DEFLATED)
    return data.replace(struct.pack("<I", len(content)), struct.pack("<I", 64))


def overlapping(count: int) -> bytes:
    """An .npz of many members that are all one."""
    data = npz(npy("(4,)", FOUR))
    start = data.index(b"PK\1\2")
    end = data.index(b"PK\5\6")
    many = data[start:end] * count
    sizes = struct.pack("<HHII", count, count, len(many), start)
    return data[:start] + many + data[end : end + 8] + sizes + b"\0\0"


SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "a header of 2^63 bytes": lambda: safetensors(b"{}", length=1 << 63),
    "a header longer than the file": lambda: safetensors(b"{}", length=1 << 20),
    "a deep header": lambda: safetensors(b'{"a":' * MB),
    "a header of many names": lambda: safetensors(
        {f"{i}": entry([0], 0, 0) for i in range(100_000)}
    ),
    "a tensor of 2^40 values": lambda: safetensors({"direction": entry([1 << 40], 0, 1 << 42)}),
    "a tensor of 2^64 values": lambda: safetensors({"direction": entry([1 << 32] * 2, 0, 0)}),
    "a tensor of fewer bytes": lambda: safetensors({"direction": entry([1 << 30], 0, 16)}, FOUR),
    "a tensor that ends before it starts": lambda: safetensors(
        {"direction": entry([4], 16, 0)}, FOUR
    ),
    "tensors in one place": lambda: safetensors(
        {name: entry([4], 0, 16) for name in ("centroid.safe", "centroid.unsafe")}, FOUR
    ),
    "no plain numbers": lambda: safetensors({"direction": entry([8], 0, 16, "F8_E4M3")}, FOUR),
}  # fmt: skip
NPZ: dict[str, Callable[[], bytes]] = {
    "2^40 values": lambda: npz(npy(f"({1 << 40},)", FOUR)),
    "2^33 values": lambda: npz(npy(f"({1 << 33},)", FOUR)),
    "a text of 2^30 letters": lambda: npz(npy("(1,)", FOUR, f"'<U{1 << 28}'")),
    "no rows of 2^60 values": lambda: npz(npy(f"(0, {1 << 60})")),
    "2^60 rows of no values": lambda: npz(npy(f"({1 << 60}, 0)")),
    "a zip bomb": lambda: npz(npy(f"({40 * MB},)", bytes(160 * MB)), method=DEFLATED),
    "a zip bomb said to be small": lambda: said_small(npy(f"({40 * MB},)", bytes(160 * MB))),
    "small numbers that grow": lambda: npz(
        npy(f"({60 * MB},)", bytes(60 * MB), "'|i1'"), method=DEFLATED
    ),
    "50,000 members": lambda: packed(*((f"{i}", b"") for i in range(50_000))),
    "one member many times": lambda: overlapping(60_000),
    "a compression that is not limited": lambda: npz(npy("(4,)", FOUR), zipfile.ZIP_BZIP2),
    "objects": lambda: npz(npy("(1,)", pickle.dumps([print]), "'|O'")),
    "a pickle": lambda: pickle.dumps({"direction": [1.0]}),
    "an archive in an archive": lambda: npz(npz(npy("(4,)", FOUR))),
}  # fmt: skip
CONTROL_VECTORS: dict[str, Callable[[], bytes]] = {
    **{name: (lambda data=data: data) for name, data in HOSTILE.items()},
    "4096 tensors in one place": lambda: gguf(
        [], [tensor(f"direction.{i}", 1 << 17) for i in range(4096)], bytes(4 << 17)
    ),
    "numbers that are none": lambda: gguf(
        [], [tensor(f"direction.{n}", 4) for n in ("", "-1", "01", "1_0", "²", "9" * 5000)], FOUR
    ),
    "zeros": lambda: gguf([], [tensor("direction.1", 4)], bytes(16)),
    "infinity": lambda: gguf([], [tensor("direction.1", 1)], struct.pack("<f", float("inf"))),
}  # fmt: skip
CASES = {
    f"{suffix}: {name}": (suffix, make)
    for suffix, cases in {
        "safetensors": SAFETENSORS, "npz": NPZ, "gguf": CONTROL_VECTORS
    }.items()
    for name, make in cases.items()
}  # fmt: skip

READING = """
import json, resource, sys, time
from pathlib import Path
import safetensors
from mars_gguf.convert.artefacts import read_artefact
from mars_gguf.errors import MarsError

resource.setrlimit(resource.RLIMIT_AS, (32 << 30,) * 2)
for name in sys.argv[1:]:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        read_artefact(Path(name), 1)
        said = "nothing"
    except MarsError as error:
        said = str(error)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([Path(name).name, said, time.process_time() - began, more]), flush=True)
"""


class Outcome(NamedTuple):
    said: str
    seconds: float
    kilobytes: int


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """What became of each case, read one after another in a process of limited memory; of those
    after one that did not end, or ended it, nothing did."""
    pytest.importorskip("safetensors")
    folder = tmp_path_factory.mktemp("hostile")
    paths = {}
    for number, (name, (suffix, make)) in enumerate(CASES.items()):
        paths[name] = folder / f"{number}.{suffix}"
        paths[name].write_bytes(make())
    process = subprocess.Popen(
        [sys.executable, "-c", READING, *map(str, paths.values())],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        printed, _ = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('["')]
    found = {name: Outcome(*rest) for name, *rest in lines}
    yield {name: found[path.name] for name, path in paths.items() if path.name in found}
    for path in paths.values():
        path.unlink()


@pytest.mark.parametrize("case", CASES)
def test_hostile_artefacts_are_refused_soon_and_in_little_memory(
    case: str, outcomes: dict[str, Outcome]
) -> None:
    assert case in outcomes, f"after {list(outcomes)[-1:]} nothing came back"
    said, seconds, kilobytes = outcomes[case]
    assert CASES[case][0] in said and said != "nothing"
    assert len(said) < 1000
    assert seconds < 4
    assert kilobytes < 150 << 10


def test_an_artefact_as_large_as_may_be_is_read(tmp_path: Path) -> None:
    """The limits are for hostile files alone."""
    from mars_gguf.convert.artefacts import read_artefact

    safe, unsafe = np.random.default_rng(0).normal(size=(2, 80, 8192)).astype(np.float32)
    np.savez(tmp_path / "a.npz", **{"centroid.safe": safe, "centroid.unsafe": unsafe})
    found = read_artefact(tmp_path / "a.npz", 40)
    np.testing.assert_array_equal(
        found.direction, unsafe[40].astype(float) - safe[40].astype(float)
    )
