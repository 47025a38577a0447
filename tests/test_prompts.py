from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_gguf.convert import prompts
from mars_gguf.convert.prompts import (
    ContrastPrompts,
    builtin_contrast,
    neutral_prompts,
    prompt_set_sha256,
    read_prompts,
    require_enough,
)
from mars_gguf.errors import MarsError

DATA = files("mars_gguf.convert") / "data"

one_line = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"))).map(str.strip)
prompt_text = one_line.filter(lambda text: text and not text.startswith(("#", "\ufeff")))


def written(folder: Path, content: str | bytes, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_builtin_pairs_are_complete_and_no_prompt_occurs_twice():
    pairs = [json.loads(line) for line in (DATA / "contrast.jsonl").read_text("utf-8").splitlines()]
    assert [pair["id"] for pair in pairs] == list(range(1, len(pairs) + 1))
    assert len(pairs) >= 160
    categories = Counter(pair["category"] for pair in pairs)
    assert len(categories) >= 10 and min(categories.values()) >= 8
    texts = [
        re.sub(r"\W+", " ", p[side]).lower() for p in pairs for side in ("harmful", "harmless")
    ]
    assert len(set(texts)) == len(texts)


def test_builtin_pairs_match_in_form_and_length():
    contrast = builtin_contrast()
    for harmful, harmless in zip(contrast.harmful, contrast.harmless, strict=True):
        assert harmful[-1] == harmless[-1] and harmful[-1] in ".?", (harmful, harmless)
        assert ("please" in harmful.lower()) == ("please" in harmless.lower()), harmful
        assert 0.6 < len(harmful.split()) / len(harmless.split()) < 1.6, (harmful, harmless)
    assert len({prompt.split()[0] for prompt in contrast.harmful}) >= 20


def test_neutral_prompts_come_in_four_forms_without_repeats_and_apart_from_the_contrast_set():
    forms = neutral_prompts()
    assert set(forms) == {"request", "description", "question", "unrelated"}
    assert all(len(found) >= 24 for found in forms.values())
    everything = [prompt for found in forms.values() for prompt in found]
    assert len(set(everything)) == len(everything)
    contrast = builtin_contrast()
    assert not set(everything) & set(contrast.harmful + contrast.harmless)


def test_the_card_states_the_true_counts():
    card = (DATA / "README.md").read_text("utf-8")
    pairs = [json.loads(line) for line in (DATA / "contrast.jsonl").read_text("utf-8").splitlines()]
    assert f"{len(pairs)} matched pairs" in card
    for category, count in Counter(pair["category"] for pair in pairs).items():
        assert f"| {category} | {count} |" in card
    forms = neutral_prompts()
    assert f"{sum(map(len, forms.values()))} harmless prompts" in card
    for form, found in forms.items():
        assert f"| {form} | {len(found)} |" in card


def test_text_files_hold_one_prompt_a_line_with_comments_blank_lines_and_repeats_dropped(tmp_path):
    path = written(
        tmp_path,
        "\ufeffHow do I sew?\r\n\r\n# a comment\r\n  Grüße an Zoë \r\nHow do I sew?\r\nC#?",
    )
    assert read_prompts(path) == ["How do I sew?", "Grüße an Zoë", "C#?"]


def test_json_lines_files_take_the_key_prompt_and_keep_line_breaks_inside(tmp_path):
    lines = [{"prompt": "# one\ntwo", "id": 3}, {"prompt": "a\u2028b"}, {"prompt": " # one\ntwo"}]
    content = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    assert read_prompts(written(tmp_path, content, "p.JSONL")) == ["# one\ntwo", "a\u2028b"]


@given(st.lists(prompt_text, min_size=1), st.booleans())
def test_what_is_written_is_read_back_without_repeats(tmp_path_factory, items, as_json):
    folder = tmp_path_factory.mktemp("prompts")
    if as_json:
        path = written(folder, "\n".join(json.dumps({"prompt": p}) for p in items), "p.jsonl")
    else:
        path = written(folder, "\n".join(items))
    assert read_prompts(path) == list(dict.fromkeys(items))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"ok\n\xff\xfeh\x00", r"p\.txt: not UTF-8 \(byte 0xff at offset 3\)"),
        ("p.txt", b"\n# only this\n", "no prompts found"),
        ("p.jsonl", b"", "no prompts found"),
        ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt": ', "line 3: not JSON"),
        ("p.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n["a"]', "line 2: found list"),
        ("p.jsonl", b'{"text": "a", "id": 1}', "line 1: no key 'prompt'; keys found: 'text', 'id'"),
        ("p.jsonl", b"{}", "keys found: none"),
        ("p.jsonl", b'{"prompt": 5}', "line 1: 'prompt' is 5, expected a non-empty string"),
        ("p.jsonl", b'{"prompt": " "}', "line 1: 'prompt' is ' ', expected a non-empty string"),
        ("p.jsonl", b'{"prompt": "\\ud800"}', "line 1: 'prompt' holds a lone surrogate"),
    ],
)
def test_a_bad_prompt_file_is_refused_naming_the_place(tmp_path, name, content, message):
    with pytest.raises(MarsError, match=message):
        read_prompts(written(tmp_path, content, name))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(MarsError, match=r"gone\.txt: no such file"):
        read_prompts(tmp_path / "gone.txt")
    with pytest.raises(MarsError, match="cannot be read"):
        read_prompts(tmp_path)


def test_too_few_prompts_are_refused_naming_found_and_expected():
    require_enough(["a"] * prompts.MIN_PROMPTS, "harmful prompts")
    with pytest.raises(MarsError, match="harmful prompts: found 7 .* expected at least 8"):
        require_enough(["a"] * 7, "harmful prompts")


def test_the_fingerprint_ignores_spacing_and_unicode_form_and_nothing_else():
    reference = prompt_set_sha256(["Caf\u00e9 au lait", "b"], ["c"])
    assert re.fullmatch("[0-9a-f]{64}", reference)
    assert prompt_set_sha256([" Cafe\u0301  au\nlait", "b"], ["c "]) == reference
    others = [
        (["b", "Caf\u00e9 au lait"], ["c"]),
        (["Caf\u00e9 au lait"], ["b", "c"]),
        (["caf\u00e9 au lait", "b"], ["c"]),
        (["Caf\u00e9 au lait b"], ["c"]),
        (["c"], ["Caf\u00e9 au lait", "b"]),
    ]
    assert reference not in {prompt_set_sha256(*other) for other in others}
    assert ContrastPrompts(["a"], ["b"]).sha256 == prompt_set_sha256(["a"], ["b"])
