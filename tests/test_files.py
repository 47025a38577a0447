from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mars_gguf.errors import MarsError
from mars_gguf.files import atomic


def interrupted_after(_: int) -> None:
    raise KeyboardInterrupt


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for content in ("one", "two"):
        with atomic(path) as file:
            file.write_text(content)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == content
    with pytest.raises(KeyboardInterrupt), atomic(path) as file:
        interrupted_after(file.write_text("half"))
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="no links and pipes like these there")
def test_a_link_stays_one_and_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a.txt")
    with atomic(tmp_path / "link") as file:
        file.write_text("one")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "one"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with atomic(pipe) as file:
        assert file == pipe
    assert pipe.is_fifo()


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.txt"
    message = f"{path}: cannot be written: File exists"
    with pytest.raises(MarsError, match=message), atomic(path):
        pass
