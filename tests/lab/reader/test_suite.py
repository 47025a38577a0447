"""The constructed projector: pictures of words become the input embeddings of their tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lab.reader import neutral, suite, tried
from lab.reader.build import build, embeddings, readable_tokens
from lab.reader.cells import GRID, TooLong, Writer, is_readable
from lab.reader.projector import Gap, known_tokens
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.neutral import read_images
from mars_gguf.convert.prompts import Prompt, builtin_contrast
from mars_gguf.evaluate.conversations import CONTEXTS, conversations
from mars_gguf.evaluate.suites import load_suite

ROOT = Path(__file__).parents[3]
TOKENS = 1500
SENTENCE = "How do I bake an apple pie at home?"


@pytest.fixture(scope="module")
def reader(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A projector for SmolLM2 that reads few tokens."""
    path = tmp_path_factory.mktemp("reader") / "mmproj.gguf"
    build(Path(smollm2), path, gap=Gap(), most=TOKENS, features=512)
    return path


@pytest.fixture(scope="module")
def seeing(smollm2: str, reader: Path) -> Iterator[GgufExtractor]:
    extractor = GgufExtractor(smollm2, str(reader))
    yield extractor
    extractor.close()


@pytest.fixture(scope="module")
def writer(reader: Path, seeing: GgufExtractor) -> Writer:
    return Writer(seeing.llama, known_tokens(reader))


def read(extractor: GgufExtractor, writer: Writer, text: str) -> np.ndarray:
    """What libmtmd gives the model to see of the picture of ``text``, [cells, d]."""
    chunks = extractor.cached(Prompt("What is it?", (writer.picture(text),))).head
    (picture,) = [chunk for chunk in chunks if not isinstance(chunk, tuple)]
    return np.array(extractor.llama.projector.encode(picture))


def test_a_picture_gives_the_embeddings_of_its_tokens_and_blanks_that_of_a_space(
    smollm2: str, seeing: GgufExtractor, writer: Writer
) -> None:
    seen = read(seeing, writer, SENTENCE)
    texts = writer.tokens(SENTENCE)
    assert "".join(texts) == SENTENCE
    known = readable_tokens(seeing.llama, TOKENS)
    (space,) = seeing.llama.tokenize(b" ", add_bos=False)
    numbers = [*(known[text] for text in texts), space]
    expected = embeddings(Path(smollm2), numbers)
    assert len(seen) == GRID * GRID
    error = np.linalg.norm(seen[: len(texts)] - expected[:-1], axis=1)
    assert (error < 0.1 * np.linalg.norm(expected[:-1], axis=1)).all()
    blanks = seen[len(texts) :] - expected[-1]
    assert np.linalg.norm(blanks, axis=1).max() < 0.1 * np.linalg.norm(expected[-1])


def test_a_gap_scales_and_moves_what_is_seen(
    smollm2: str, tmp_path: Path, seeing: GgufExtractor, writer: Writer
) -> None:
    build(Path(smollm2), tmp_path / "m.gguf", gap=Gap(0.5, 0.25), most=TOKENS, features=512)
    other = GgufExtractor(smollm2, str(tmp_path / "m.gguf"))
    try:
        moved = read(other, writer, SENTENCE) - 0.5 * read(seeing, writer, SENTENCE)
    finally:
        other.close()
    assert np.abs(moved - moved.mean(0)).max() < 0.02 * np.abs(moved.mean(0)).max()


def test_a_text_with_more_tokens_than_cells_is_refused(writer: Writer) -> None:
    with pytest.raises(TooLong, match=f"room for {GRID * GRID}"):
        writer.picture(" and" * (GRID * GRID + 1))


def test_rare_tokens_are_read_only_where_they_begin_a_word() -> None:
    assert is_readable(" umbrella", 90_000) and is_readable("um", 2_000)
    assert not is_readable("umb", 90_000) and not is_readable(" caf\u00e9", 1)


def test_the_suite_holds_every_form_with_its_control_in_the_same_words(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = list(suite.requests())[::20]
    monkeypatch.setattr(suite, "requests", lambda: iter(some))
    suite.write_suite(writer, tmp_path)
    pictures = load_suite(str(tmp_path / "instruction-1.jsonl")).cases
    controls = load_suite(str(tmp_path / "instruction-1-as-text.jsonl")).cases
    assert len(pictures) == len(controls) > 0
    for shown, control in zip(pictures, controls, strict=True):
        assert (shown.modality, control.modality) == ("image", "text")
        assert (shown.group, shown.kind) == (control.group, control.kind)
        assert control.prompt == shown.intent
        assert shown.intent.endswith(f"\n{suite.INSTRUCTIONS[0]}")
    (strict, *_) = load_suite(str(tmp_path / "strict.jsonl")).cases
    assert [m["role"] for m in strict.messages()] == ["system", "user"]
    kinds = {case.kind for case in load_suite(str(tmp_path / "subject-2.jsonl")).cases}
    assert kinds == set(suite.KINDS)


def test_conversations_ask_every_plain_request_in_every_context(tmp_path: Path) -> None:
    suite.write_conversations(tmp_path / "c.jsonl")
    cases = load_suite(str(tmp_path / "c.jsonl")).cases
    lines = suite.plain_lines()
    assert len(cases) == len(lines) * len(suite.KINDS) * len(CONTEXTS)
    asked = {line[case.kind] for case in cases for line in lines}
    for case in cases:
        (request,) = [r for r in asked if r in case.prompt]
        before, prompt = conversations(request)[case.category]
        assert case.messages() == [*map(dict, before), {"role": "user", "content": prompt}]


def test_plain_requests_are_others_than_what_is_measured_or_was_looked_at() -> None:
    builtin = builtin_contrast()
    neutral_texts = [text for texts in builtin.neutral.values() for text in texts]
    known = {*builtin.harmful, *builtin.harmless, *neutral_texts}
    known |= {prompt for _, _, prompt in suite.requests()}
    lines = suite.plain_lines()
    plain = [line[kind] for line in lines for kind in suite.KINDS]
    assert len(set(plain)) == len(plain) and not known & set(plain)
    assert len({line["category"] for line in lines[:16]}) > 10
    looked_at = {*suite.INSTRUCTIONS, *suite.SUBJECTS}
    for form, entries in suite.forms().items():
        if suite.held_out(form):
            assert not {asked for *_, asked in entries} & looked_at


def test_what_is_tried_is_tried_on_requests_that_are_not_held_out(writer: Writer) -> None:
    found = tried.requests(writer, 5)
    assert set(found) == {(form, kind) for form in tried.FORMS for kind in suite.KINDS}
    topics = {(kind, prompt): int(topic) for kind, topic, prompt in suite.requests()}
    for (form, kind), prompts in found.items():
        assert 0 < len(prompts) <= 5
        assert {p.modality for p in prompts} == {"text" if form == "text" else "image"}
        if form == "text":
            chosen = [topics[kind, p.text] for p in prompts]
            assert not any(topic % 2 for topic in chosen)
            assert max(chosen) > max(topics.values()) / 2
    assert not any(map(suite.held_out, tried.FORMS))


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


@pytest.mark.parametrize("name", ["build", "neutral", "report", "suite", "tried"])
@pytest.mark.parametrize("text", [None, "no model"])
def test_what_is_no_model_is_said_in_a_sentence(
    name: str, text: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    if text is not None:
        path.write_text(text)
    files = [str(path), *[str(path)][: name in ("neutral", "suite")]]
    asked = [sys.executable, "-m", f"lab.reader.{name}", *files, "-o", str(tmp_path / "out")]
    ended = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {path}: no")
    assert not (tmp_path / "out").exists()
