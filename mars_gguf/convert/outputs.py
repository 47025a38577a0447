"""The files of a conversion: the vector, with its card and its plot beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mars_gguf.convert.artefacts import is_artefact
from mars_gguf.convert.card import card, split_parity
from mars_gguf.convert.pipeline import Conversion
from mars_gguf.convert.plot import write_plot
from mars_gguf.errors import MarsError
from mars_gguf.files import atomic, sha256
from mars_gguf.vectors import Vector, VectorError, read_vector, write_contents


def output_paths(name: str, inputs: Sequence[str], *, plot: bool) -> list[Path]:
    """Where the vector called ``name``, its card and, with ``plot``, its plot go. Raises MarsError
    if they cannot be written there, or would replace anything but an older vector with what lies
    beside it."""
    output = Path(name)
    if output.is_dir():
        raise MarsError(f"{output}: is a directory, expected a file name")
    if output.suffix != ".gguf":
        raise MarsError(
            f"{output}: found the ending {output.suffix!r}, expected '.gguf': the card and the "
            "plot are written beside it under '.md' and '.png'"
        )
    outputs = [output, *map(output.with_suffix, [".md", ".png"][: 1 + plot])]
    for written in outputs:
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
    folder = next(p for p in output.absolute().parents if p.exists())
    try:  # now, not after an hour of measuring
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise MarsError(
            f"{output}: cannot be written, {folder}: {error.strerror}. Choose another --output."
        ) from error
    return outputs


def write_outputs(conversion: Conversion, outputs: Sequence[Path]) -> None:
    """Write vector, card and plot to ``output_paths``: all of them, or none. A parity table in an
    older card stays if it is of the same vector. Raises MarsError."""
    output, card_path, *plots = outputs
    parity = _parity_table(output, conversion.vector)
    with ExitStack() as files:
        vector_file = files.enter_context(atomic(output))
        write_contents(conversion.vector, vector_file)
        text = card(conversion, output.name, sha256(vector_file), parity)
        files.enter_context(atomic(card_path)).write_text(text, encoding="utf-8")
        for plot in plots:
            write_plot(conversion, files.enter_context(atomic(plot)))


def _parity_table(output: Path, vector: Vector) -> str:
    """The parity table in the card that is to be replaced, if the vector there was measured on the
    same model: the same fingerprint, and a direction that rounding explains. Else ""."""
    try:
        older = read_vector(output)
        text = output.with_suffix(".md").read_text(encoding="utf-8")
    except (VectorError, OSError, UnicodeDecodeError):
        return ""
    a, b = older.geometry, vector.geometry
    same = (older.model, older.layer) == (vector.model, vector.layer) and (
        a.direction @ b.direction > 0.999 * a.distance * b.distance
    )
    return split_parity(text)[1] if same else ""
