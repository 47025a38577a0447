"""Vector, card and plot: written together or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toys import toy_measurement

from mars_gguf.convert.vector_files import write_outputs
from mars_gguf.files import sha256


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
        write_outputs(made, [tmp_path / f"v.{suffix}" for suffix in ("gguf", "md", "png")])
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
