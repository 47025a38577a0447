from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lab.reader import neutral, suite
from lab.reader.grid import GRID, TooLong, Writer, is_readable
from mars_gguf.convert.neutral import read_images


def test_neutral_pictures_lie_in_folders_by_kind(tmp_path: Path, writer: Writer) -> None:
    drawn = neutral.write_neutral(writer, tmp_path)
    kinds = read_images(tmp_path)
    assert set(kinds) == {"instruction", "request", "subject"}
    assert sum(map(len, kinds.values())) == drawn
    shutil.rmtree(tmp_path)


def test_neutral_texts_are_about_other_things_than_the_suite() -> None:
    folder = Path(neutral.__file__).parent
    texts = [
        json.loads(line)["text"].lower()
        for line in (folder / "neutral.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    subjects = [
        json.loads(line)
        for line in (folder / "subjects.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    phrases = {line[kind] for line in subjects for kind in suite.KINDS}
    assert len(set(texts)) == len(texts)
    assert not phrases & set(texts)


def test_a_text_with_more_tokens_than_cells_is_refused(writer: Writer) -> None:
    with pytest.raises(TooLong, match=f"room for {GRID * GRID}"):
        writer.picture(" and" * (GRID * GRID + 1))


def test_rare_tokens_are_read_only_where_they_begin_a_word() -> None:
    assert is_readable(" umbrella", 90_000) and is_readable("um", 2_000)
    assert not is_readable("umb", 90_000) and not is_readable(" caf\u00e9", 1)
