"""The choices of a conversion."""

from __future__ import annotations

import pytest

from mars_gguf.convert.choices import Calibration, CheckpointOptions, GgufOptions, chosen
from mars_gguf.errors import MarsError


def test_a_calibration_out_of_range_is_refused() -> None:
    for share in (1.0, -0.1):
        with pytest.raises(MarsError, match=f"--over-refusal: found {share}, expected a share"):
            Calibration(over_refusal=share)


def test_a_group_takes_the_options_of_its_fields_names_and_what_is_called_otherwise() -> None:
    options = {"dtype": "float16", "batch_size": 3, "revision": None, "threads": 4}
    assert chosen(CheckpointOptions, options) == CheckpointOptions(dtype="float16", batch_size=3)
    assert chosen(GgufOptions, options, n_threads=4) == GgufOptions(n_threads=4)
