"""Writes the files of a conversion: the vector, with its card and its plot beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mars_gguf.convert.artefacts import is_artefact
from mars_gguf.convert.card import card, split_parity
from mars_gguf.convert.pipeline import Measurement
from mars_gguf.convert.plot import write_plot
from mars_gguf.errors import MarsError
from mars_gguf.files import atomic, remove_partial, require_writable, sha256
from mars_gguf.interrupts import interrupts_held
from mars_gguf.vectors import Vector, VectorError, read_vector, write_contents

BESIDE = ".md", ".png"
RESUME = ".measured"


def output_paths(name: str, inputs: Sequence[str], *, plot: bool) -> list[Path]:
    """The paths of the vector called ``name``, its card and, with ``plot``, its plot. Raises
    MarsError if they cannot be written, or would replace anything but an older vector with what
    lies beside it."""
    output = Path(name)
    if any("\ud800" <= letter <= "\udfff" for letter in name):  # Python's marks of other bytes
        raise MarsError(f"{output}: found a name that is not UTF-8. Choose another --output.")
    if output.suffix != ".gguf":
        raise MarsError(
            f"{output}: found the ending {output.suffix!r}, expected '.gguf': the card and the "
            "plot are written beside it under '.md' and '.png'"
        )
    outputs = [output, *map(output.with_suffix, BESIDE[: 1 + plot])]
    for written in (*outputs, resume_path(output)):
        try:  # now, not after an hour of measuring
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


def resume_path(output: Path) -> Path:
    """The file that keeps what is measured until ``output`` is written."""
    return output.with_suffix(RESUME)


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Keeps other conversions from writing ``output`` until the block ends; what killed ones left
    half-written is removed. Its folder is made, and removed if nothing came into it. The claim of a
    process ends with it, however it ends.

    Raises MarsError where another conversion is writing there.
    """
    target = output.resolve()
    lock = FileLock(f"{target}.lock", timeout=0)
    with ExitStack() as end:
        for folder in reversed([p for p in target.parents if not p.exists()]):
            end.callback(_remove_if_empty, folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise MarsError(
                f"another conversion is writing {output}. Wait until it has ended, or choose "
                "another --output."
            ) from error
        except OSError as error:
            raise MarsError(
                f"{output}: cannot be written, {lock.lock_file}: {error.strerror or error}. "
                "Choose another --output."
            ) from error
        end.callback(_give_up, lock)
        for suffix in (output.suffix, *BESIDE, RESUME):
            remove_partial(output.with_suffix(suffix))
        yield


def _give_up(lock: FileLock) -> None:
    # While it is held, so that whoever opened the file before finds that it is gone and no lock.
    with interrupts_held():
        with suppress(OSError):  # Windows removes no open file: there filelock does, afterwards
            os.unlink(lock.lock_file)
        lock.release()


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def write_outputs(measurement: Measurement, outputs: Sequence[Path]) -> None:
    """Writes vector, card and plot to ``output_paths``: all of them, or none. A parity table in an
    older card stays if it is of the same vector. Raises MarsError."""
    output, card_path, *plots = outputs
    parity = _parity_table(output, measurement.vector)
    # All are written before the first takes its place: the last begun, the card. It names the hash
    # of its vector, so whoever finds it beside another (after a power cut) can tell.
    with ExitStack() as held, ExitStack() as files:
        vector_file = files.enter_context(atomic(output))
        write_contents(measurement.vector, vector_file)
        for plot in plots:
            write_plot(measurement, files.enter_context(atomic(plot)))
        text = card(measurement, output.name, sha256(vector_file), parity)
        files.enter_context(atomic(card_path)).write_text(text, encoding="utf-8")
        held.enter_context(interrupts_held())


def _parity_table(output: Path, vector: Vector) -> str:
    """Reads the parity table of the card that is to be replaced, if the vector there was measured
    on the same model: the same fingerprint, and a direction that rounding explains. Else ""."""
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
