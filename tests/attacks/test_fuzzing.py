"""Files that are changed at random, and what finds out what becomes of them."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from attacks.fuzz_pictures import KINDS, MADE, made

from mars_gguf.media.images import decode_image

ROOT = Path(__file__).parents[2]
BROKEN = """
import os
from tests.attacks import fuzz_pictures

def broken(file, name, most):
    data = file.getvalue()
    if data.startswith(b"BM"):
        raise KeyError("what is this")
    if data.startswith(b"GIF"):
        os.abort()
    if data.startswith(b"RIFF"):
        while True:
            pass
    if data.startswith(b"\\x89PNG"):
        bytearray(1 << 29)
    raise fuzz_pictures.MarsError("it: not a picture")

fuzz_pictures.decode_image, fuzz_pictures.SECONDS = broken, 0.05
fuzz_pictures.main()
"""


def fuzzed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_thousands_of_changed_files_give_pixels_or_a_clear_error(tmp_path: Path) -> None:
    done = fuzzed(tmp_path, "-m", "tests.attacks.fuzz_pictures", "--files", "3600", "--seed", "1")
    assert done.returncode == 0, done.stderr
    rows = {line[:15].strip(): line[15:].split() for line in done.stdout.splitlines()[1:]}
    assert tuple(rows) == KINDS
    for kind, counts in rows.items():
        assert sum(map(int, counts)) == 300
        assert kind == "other" or 30 < int(counts[0]) < 290, (kind, counts)
    assert not list(tmp_path.iterdir())


def test_what_else_happens_is_found_and_the_file_is_kept(tmp_path: Path) -> None:
    done = fuzzed(tmp_path, "-c", BROKEN, "--files", "36", "--first", "100")
    assert done.returncode == 1
    heads = {b"BM": "KeyError", b"GI": "ended (-6)", b"RI": "ended (-27)", b"\x89P": "MemoryError"}
    found = set()
    for number in range(100, 136):
        kind, data = made(0, number)
        kept = tmp_path / f"crash-{kind.replace(' ', '-')}-{number}"
        assert kept.exists() == (data[:2] in heads)
        if kept.exists():
            found.add(data[:2])
            assert kept.read_bytes() == data
            assert heads[data[:2]] in done.stderr.partition(kept.name)[2].partition("crash-")[0]
    assert found == set(heads)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged EXIF data
@pytest.mark.parametrize("kind", ["EXIF", "colour profile"])
def test_nothing_that_a_picture_carries_along_keeps_it_from_being_shown(kind: str) -> None:
    for number in range(1000):
        file = io.BytesIO(MADE[kind](random.Random(number)))
        assert decode_image(file, "a picture").size in ((24, 16), (16, 24)), number
