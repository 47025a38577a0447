"""Vector, card and plot: written together or not at all, and never over anything else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toys import toy_measurement

from mars_gguf.convert.vector_files import output_paths, resume_path, write_outputs
from mars_gguf.errors import MarsError
from mars_gguf.files import sha256

VECTOR = Path(__file__).parents[2] / "vectors" / "demo.gguf"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ctrl_c_between_the_renames_waits_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = toy_measurement()
    placed: list[str] = []
    replace = os.replace

    def replace_and_interrupt(source: Path, target: Path) -> None:
        replace(source, target)
        placed.append(target.suffix)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "replace", replace_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_outputs(made, output_paths(tmp_path / "v.gguf", []))
    assert placed == [".md", ".png", ".gguf"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.gguf", "v.md", "v.png"]
    assert sha256(tmp_path / "v.gguf") in (tmp_path / "v.md").read_text()


WRITING = """
import resource, sys
from pathlib import Path
from toys import toy_measurement
from mars_gguf.console import command
from mars_gguf.convert.vector_files import write_outputs

made = toy_measurement()
if limit := int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit,) * 2)
with command():
    write_outputs(made, [Path(name) for name in sys.argv[2:]])
"""


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no limit on file sizes (RLIMIT_FSIZE)"
)
def test_a_full_disk_leaves_vector_card_and_plot_as_they_were(tmp_path: Path) -> None:
    outputs = [tmp_path / f"v.{suffix}" for suffix in ("gguf", "md", "png")]
    written = [outputs[0], outputs[2], outputs[1]]  # in this order

    def write(limit: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", WRITING, str(limit), *map(str, outputs)],
            capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
        )  # fmt: skip

    assert write(0).returncode == 0
    sizes = [path.stat().st_size for path in written]
    for path in outputs[1:]:
        path.write_bytes(b"old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for i, path in enumerate(written):
        if all(size < sizes[i] for size in sizes[:i]):
            done = write(sizes[i] - 1)
            assert (done.returncode, done.stderr) == (
                2, f"error: {path}: cannot be written: File too large\n"
            )  # fmt: skip
            assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Where nothing is written ------------------------------------------------------------------------


def test_vector_card_plot_and_what_is_kept_stand_side_by_side(tmp_path: Path) -> None:
    paths = [*output_paths(tmp_path / "new" / "v.gguf", []), resume_path(tmp_path / "v.gguf")]
    assert [path.name for path in paths] == ["v.gguf", "v.md", "v.png", "v.measured"]
    assert list(tmp_path.iterdir()) == []


def places(folder: Path) -> dict[str, tuple[Path, str]]:
    """Where no vector can be written, or not with its card, and what is said."""
    (folder / "inputs.gguf").mkdir()
    for name in ("loop.gguf", "card.md", "circle", "same.gguf"):
        (folder / name).symlink_to({"same.gguf": "same.md"}.get(name, name))
    (folder / "kept.gguf").write_bytes(VECTOR.read_bytes())
    (folder / "kept.gguf").chmod(0o444)
    for name in ("m.gguf", "README.md", "READER.png", "NOTES.gguf"):
        (folder / name).write_bytes(b"GGUF, as far as this goes")
    return {
        "the model itself": (folder / "m.gguf", "this is the input itself"),
        "a folder": (folder / "inputs.gguf", "is a directory"),
        "under a file": (folder / "m.gguf" / "v.gguf", "cannot be written"),
        "without rights": (Path("/proc/v.gguf"), "cannot be written"),
        "a link to itself": (folder / "loop.gguf", "cannot be written"),
        "under a link to itself": (folder / "circle" / "v.gguf", "cannot be written"),
        "a card that is a link to itself": (folder / "card.gguf", "card.md: cannot be written"),
        "a link to its card": (folder / "same.gguf", "are links to one file"),
        "write-protected": (folder / "kept.gguf", "it is write-protected"),
        "too long": (folder / f"{'x' * 240}.gguf", "cannot be written"),
        "not UTF-8": (folder / os.fsdecode(b"\xff.gguf"), "found a name that is not UTF-8"),
        "another ending": (folder / "v.md", "expected '.gguf'"),
        "beside notes": (folder / "README.gguf", "README.md: found a file here, but no vector"),
        "beside a picture": (folder / "READER.gguf", "READER.png: found a file here, but no vect"),
        "over something else": (folder / "NOTES.gguf", "found a file that is no vector"),
    }


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows makes no symbolic links without further rights"
)
def test_places_that_cannot_be_written_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    refused = places(tmp_path)
    before = {p: p.is_file() and p.read_bytes() for p in sorted(tmp_path.rglob("*"))}
    for place, (output, message) in refused.items():
        if place == "without rights" and not Path("/proc").is_dir():
            continue  # where not even root may write
        with pytest.raises(MarsError, match=re.escape(message)):
            output_paths(output, [str(tmp_path / "m.gguf")])
        assert {p: p.is_file() and p.read_bytes() for p in sorted(tmp_path.rglob("*"))} == before
