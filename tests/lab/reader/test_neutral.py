from __future__ import annotations

import json
import shutil
from pathlib import Path

from lab.reader import neutral, suite
from lab.reader.grid import Writer
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
