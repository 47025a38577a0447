from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from mars_gguf.errors import MarsError
from mars_gguf.files import atomic, require_writable


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


@pytest.mark.skipif(sys.platform == "win32", reason="no links like these there")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/a.txt", "Not a directory"),
        ("loop.txt", "Too many levels of symbolic links"),
        ("a/a.txt", "Too many levels of symbolic links"),
        ("x" * 250, "File name too long"),
        ("a\0b", "embedded null"),
    ],
)
def test_what_cannot_be_written_is_named(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for link, target in (("loop.txt", "loop.txt"), ("a", "b"), ("b", "a")):
        (tmp_path / link).symlink_to(target)
    path, before = tmp_path / name, sorted(tmp_path.iterdir())
    message = re.escape(f"{path}: cannot be written: {reason}")
    with pytest.raises(MarsError, match=message), atomic(path):
        pytest.fail("begun")
    with pytest.raises(MarsError, match=message):
        require_writable(path)
    assert sorted(tmp_path.iterdir()) == before


def test_whether_a_file_can_be_written_is_told_without_a_trace(tmp_path: Path) -> None:
    old, new = tmp_path / "old.txt", tmp_path / "new" / "folder" / "a.txt"
    old.write_text("old")
    require_writable(old)
    require_writable(new)
    old.chmod(0o444)
    with pytest.raises(MarsError, match=r"old\.txt: cannot be written: it is write-protected"):
        require_writable(old)
    assert list(tmp_path.iterdir()) == [old] and old.read_text() == "old"


@pytest.mark.skipif(sys.platform == "win32", reason="no umask there")
@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic(tmp_path / "a.txt") as file:
            file.write_text("one")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask
