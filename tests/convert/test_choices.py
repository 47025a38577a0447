"""The choices of a conversion, and those of the command."""

from __future__ import annotations

from typing import Any

import pytest
from commands import convert as command
from models import DEMO

from mars_gguf.convert.choices import (
    Calibration,
    CheckpointOptions,
    GgufOptions,
    Prompts,
    chosen,
)
from mars_gguf.errors import MarsError


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"over_refusal": 1.0}, "--over-refusal: found 1.0, expected a share from 0 to below 1"),
        ({"over_refusal": -0.1}, "--over-refusal: found -0.1"),
        ({"shrinkage": 1.5}, "--shrinkage: found '1.5', expected 0 to 1, oas or ledoit-wolf"),
        ({"shrinkage": "none"}, "--shrinkage: found 'none'"),
    ],
)
def test_a_calibration_out_of_range_is_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(MarsError, match=message):
        Calibration(**choice)


def test_a_group_takes_the_options_of_its_fields_names_and_what_is_called_otherwise() -> None:
    options = {"dtype": "float16", "batch_size": 3, "revision": None, "threads": 4}
    assert chosen(CheckpointOptions, options) == CheckpointOptions(dtype="float16", batch_size=3)
    assert chosen(GgufOptions, options, n_threads=4) == GgufOptions(n_threads=4)


@pytest.mark.parametrize(
    ("model", "options"), [(DEMO, GgufOptions()), ("ORG/NAME", CheckpointOptions())]
)
def test_the_defaults_of_the_command_are_those_of_the_library(
    model: str, options: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def convert(model: str, mmproj: str | None, **given: Any) -> None:
        asked.append(given)
        raise MarsError("enough")

    monkeypatch.setattr("mars_gguf.convert.conversion.convert", convert)
    monkeypatch.setattr("mars_gguf.convert.vector_files.require_writable", lambda path: None)
    with pytest.raises(SystemExit):
        command([model])
    (given,) = asked
    assert (given["prompts"], given["calibration"]) == (Prompts(), Calibration())
    assert given["options"] == options
