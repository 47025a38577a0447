"""Writes the files of a conversion: the vector, with its card and its plot beside it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mars_gguf.convert.artefacts import is_artefact
from mars_gguf.convert.card import card
from mars_gguf.convert.choices import StrPath
from mars_gguf.convert.pipeline import Measurement
from mars_gguf.convert.plot import write_plot
from mars_gguf.errors import MarsError
from mars_gguf.files import atomic, require_writable, sha256
from mars_gguf.interrupts import interrupts_held
from mars_gguf.vectors import write_contents

BESIDE = ".md", ".png"
RESUME = ".measured"


def output_paths(path: StrPath, inputs: Sequence[str]) -> list[Path]:
    """The paths of the vector at ``path``, its card and its plot. Raises MarsError if they cannot
    be written, or would replace anything but an older vector with what lies beside it."""
    output = Path(path)
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):  # Python's of other bytes
        raise MarsError(f"{output}: found a name that is not UTF-8. Choose another --output.")
    if output.suffix != ".gguf":
        raise MarsError(
            f"{output}: found the ending {output.suffix!r}, expected '.gguf': the card and the "
            "plot are written beside it under '.md' and '.png'"
        )
    outputs = [output, *map(output.with_suffix, BESIDE)]
    for written in (*outputs, resume_path(output)):
        try:
            require_writable(written)
        except MarsError as error:
            raise MarsError(f"{error}. Choose another --output.") from error
        if written.is_dir():
            raise MarsError(f"{written}: is a directory, expected to write a file there")
        if written.exists() and any(Path(i).exists() and written.samefile(i) for i in inputs):
            raise MarsError(f"{written}: this is the input itself. Choose another --output.")
    if output.exists() and not is_artefact(output):
        raise MarsError(f"{output}: found a file that is no vector. Choose another --output.")
    for written in outputs[1:]:
        if written.exists() and not output.exists():
            raise MarsError(
                f"{written}: found a file here, but no vector {output.name} that it belongs to. "
                "Move it away, or choose another --output."
            )
    if len({written.resolve() for written in outputs}) < len(outputs):
        raise MarsError(
            f"{output}: it, its card and its plot are links to one file. Choose another --output."
        )
    return outputs


def resume_path(output: StrPath) -> Path:
    """The file that keeps what is measured until ``output`` is written."""
    return Path(output).with_suffix(RESUME)


def write_outputs(measurement: Measurement, outputs: Sequence[Path]) -> None:
    """Writes vector, card and plot to `output_paths`: all of them, or none. Raises MarsError."""
    output, card_path, plot = outputs
    # All are written before the first takes its place: the last begun, the card. It names the hash
    # of its vector, so whoever finds it beside another (after a power cut) can tell.
    with ExitStack() as held, ExitStack() as files:
        vector_file = files.enter_context(atomic(output))
        write_contents(measurement.vector, vector_file)
        write_plot(measurement, files.enter_context(atomic(plot)))
        text = card(measurement, output.name, sha256(vector_file))
        files.enter_context(atomic(card_path)).write_text(text, encoding="utf-8")
        held.enter_context(interrupts_held())
