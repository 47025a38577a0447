from __future__ import annotations

import os
from pathlib import Path

import pytest

from mars_gguf.chat.lines import typed_path
from mars_gguf.errors import MarsError


@pytest.mark.skipif(
    os.name == "nt", reason="on Windows a backslash parts folders, and quotes nothing"
)
def test_a_path_may_be_typed_with_quotes_backslashes_and_a_tilde(tmp_path: Path) -> None:
    path = tmp_path / "a picture's.png"
    path.touch()
    for typed in (str(path), f'"{path}"', str(path).replace(" ", "\\ ").replace("'", "\\'")):
        assert typed_path(typed, "/image") == str(path)
    assert typed_path("~/a.png", "/image") == os.path.expanduser("~/a.png")


def test_a_name_that_reads_as_a_quotation_is_taken_literally_where_there_is_such_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("'a'").touch()
    assert typed_path("'a'", "/image") == "'a'"
    assert typed_path("'odd", "/image") == "'odd"


@pytest.mark.parametrize(("typed", "said"), [("", "/save needs a path"), ("a\0b", "character 0")])
def test_what_is_no_path_is_refused(typed: str, said: str) -> None:
    with pytest.raises(MarsError, match=said):
        typed_path(typed, "/save")
