from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_gguf.convert import prompts
from mars_gguf.convert.prompts import (
    ContrastPrompts,
    Prompt,
    builtin_contrast,
    contexts,
    neutral_prompts,
    prompt_set_sha256,
    read_contrast,
    read_prompts,
    require_enough,
)
from mars_gguf.convert.splits import split_prompts
from mars_gguf.errors import MarsError
from mars_gguf.openings import judge_by_opening
from mars_gguf.statistics import largest_count

DATA = files("mars_gguf.convert") / "data"

one_line = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"))).map(str.strip)
prompt_text = one_line.filter(lambda text: text and not text.startswith(("#", "\ufeff")))


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]


def written(folder: Path, content: str | bytes, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# The built-in sets -------------------------------------------------------------------------------

SCHEMAS: dict[str, dict[str, set[Any]]] = {  # keys, and what may stand there if not any text
    "contrast": {"id": set(), "category": set(), "harmful": set(), "harmless": set()},
    "neutral_prompts": {
        "form": {"description", "question", "unrelated"}, "prompt": set()
    },
    "neutral_text": {"kind": {"everyday", "borderline"}, "form": set(), "prompt": set()},
    "harmful_requests": {"category": set(), "topic": set(), "request": set()},
    "harmless_requests": {"topic": set(), "request": set()},
    "borderline_text": {
        "form": {
            "homonym", "figure", "safe_target", "safe_context", "definition", "history",
            "privacy", "fiction", "safety", "nonsense",
        },
        "topic": set(), "prompt": set(),
    },
    "borderline_subjects": {"verb": set(), "thing": set(), "topic": set()},
    "subjects": {"verb": set(), "harmful": set(), "harmless": set()},
    "contexts": {
        "name": {"assistant", "persona", "strict", "third turn", "after a refusal"},
        "messages": set(),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_line_of_a_builtin_file_has_its_keys_and_plain_text(name: str) -> None:
    text = (DATA / f"{name}.jsonl").read_text("utf-8")
    assert not re.search(r"[\u2018-\u201f\u2026\u00a0\t]|\\[ut]", text)  # straight quotes alone
    for row in rows(name):
        assert list(row) == list(SCHEMAS[name])
        for key, allowed in SCHEMAS[name].items():
            assert not allowed or row[key] in allowed
            if isinstance(row[key], str):
                assert row[key] == " ".join(row[key].split()) != ""
    for key, allowed in SCHEMAS[name].items():
        assert not allowed or {row[key] for row in rows(name)} == allowed


def test_builtin_pairs_match_in_form_and_length() -> None:
    for pair in rows("contrast"):
        harmful, harmless = pair["harmful"], pair["harmless"]
        assert harmful[-1] == harmless[-1] and harmful[-1] in ".?", (harmful, harmless)
        assert ("please" in harmful.lower()) == ("please" in harmless.lower()), harmful
        assert 0.6 < len(harmful.split()) / len(harmless.split()) < 1.6, (harmful, harmless)


@pytest.mark.parametrize(("name", "kinds"), [("text", 2), ("picture", 3)])
def test_wordings_are_many_in_many_registers_and_each_has_its_placeholders(
    name: str, kinds: int
) -> None:
    wordings = rows(f"{name}_wordings")
    assert len(wordings) >= {"text": 60, "picture": 120}[name]
    assert len({w["kind"] for w in wordings}) == kinds
    assert all(n >= 2 for n in Counter((w["kind"], w["register"]) for w in wordings).values())
    assert len({w["register"] for w in wordings}) == 10
    for w in wordings:
        expected = {"subject": ["{verb}"], "instruction": [], "any": []}[w["kind"]]
        if name == "text":
            expected = ["{thing}", "{verb}"] if expected else ["{}"]
        assert sorted(re.findall(r"{.*?}", w["text"])) == expected, w


@pytest.mark.parametrize("side", ["harmful", "harmless"])
def test_requests_and_things_are_put_in_wordings_in_turn_and_every_third_request_as_it_is(
    side: str,
) -> None:
    contrast, pairs = builtin_contrast(), rows("contrast")
    found, things = getattr(contrast, side), rows("subjects")[::2]
    requests = [pair[side] for pair in pairs]
    requests += [row["request"] for row in rows(f"{side}_requests")]
    n = len(found) - len(things)
    assert n >= 300
    for i, (prompt, request) in enumerate(zip(found[:n], requests, strict=False)):
        assert request in prompt
        assert (prompt == request) == (i % 3 == 0) == (prompt not in contrast.wordings)
        assert prompt.startswith(request + "\n") or i % 3 < 2
    for prompt, thing in zip(found[n:], things, strict=True):
        assert thing[side] in prompt and thing["verb"] in prompt
        assert contrast.wordings[prompt] not in (prompt, "{thing}")
    several = Counter(contrast.wordings.values())
    assert len(several) >= 150 and max(several.values()) <= 24


def test_neutral_prompts_and_text_come_in_many_forms_and_numbers() -> None:
    assert all(len(found) >= 24 for found in neutral_prompts().values())
    contrast = builtin_contrast()
    forms = Counter((row["kind"], row["form"]) for row in rows("neutral_text"))
    assert len(contrast.neutral["borderline"]) >= 400
    for kind, found in contrast.neutral.items():
        assert len(found) >= 150
        assert sum(k == kind for k, _ in forms) >= 5, forms
    held_out = split_prompts(contrast, {}, contexts(), 0).neutral["text"].certify
    assert largest_count(len(held_out), 0.01) >= 0  # enough to promise 1 %


def test_no_prompt_occurs_twice_in_any_set() -> None:
    contrast = builtin_contrast()
    sets = contrast.harmful, contrast.harmless, *contrast.neutral.values()
    everything = list(chain(*sets, *neutral_prompts().values()))
    plain = Counter(re.sub(r"\W+", " ", prompt).lower().strip() for prompt in everything)
    assert [prompt for prompt, n in plain.items() if n > 1] == []


def test_contexts_are_conversations_that_a_user_may_go_on_with() -> None:
    none, *others = contexts()
    assert (none.name, none.messages) == ("none", ())
    assert min(Counter(c.name for c in others).values()) >= 3
    assert len({str(c.messages) for c in others}) == len(others)
    for context in others:
        roles = [m["role"] for m in context.messages]
        system = roles[:1] == ["system"]
        turns = roles[system:]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert system == (context.name in ("assistant", "persona", "strict"))
        if turns:
            said = judge_by_opening(context.messages[-1]["content"])
            assert said == ("refused" if context.name == "after a refusal" else "answered")
        assert all(set(m) == {"role", "content"} and m["content"] for m in context.messages)
        ours = {"role": "user", "content": "Hello"}
        assert Prompt("Hello", context=context).messages == [*context.messages, ours]


def test_under_a_system_prompt_it_stands_before_every_turn_and_no_other_does() -> None:
    found = contexts("Be brief.")
    system = {"role": "system", "content": "Be brief."}
    turns = [c.messages for c in contexts() if c.name in ("none", "third turn", "after a refusal")]
    assert [c.messages for c in found] == [(system, *messages) for messages in turns]


def test_the_card_states_the_true_counts() -> None:
    card = (DATA / "README.md").read_text("utf-8")
    assert f"{len(rows('contrast'))} matched pairs" in card
    assert f"{len(rows('neutral_prompts'))} harmless prompts" in card
    for name, key in (
        ("contrast", "category"), ("neutral_prompts", "form"), ("neutral_text", "kind"),
    ):  # fmt: skip
        for value, count in Counter(row[key] for row in rows(name)).items():
            assert f"| {value} | {count} |" in card
    assert f"{len(rows('subjects'))} things" in card
    assert f"{len(rows('neutral_text'))} harmless prompts" in card
    assert f"{len(rows('contexts'))} conversations" in card
    for name in ("text_wordings", "picture_wordings", "borderline_text", "borderline_subjects"):
        assert f"{len(rows(name))} " in card.partition(f"## {name}.jsonl")[2].splitlines()[1]
    for name in ("harmful_requests", "harmless_requests"):
        assert f"{len(rows(name))} {name.partition('_')[0]} requests" in card


# Files -------------------------------------------------------------------------------------------


def test_own_files_bring_no_builtin_neutral_text_and_own_neutral_text_replaces_it(
    tmp_path: Path,
) -> None:
    sides = [written(tmp_path, "\n".join(f"{name} {i}" for i in range(9)), name) for name in "ab"]
    odd = written(tmp_path, "How do I kill a process?", "odd.txt")
    builtin = builtin_contrast()
    assert read_contrast(None, None) == builtin
    theirs = {"borderline": ["How do I kill a process?"]}
    assert read_contrast(None, None, odd) == replace(builtin, neutral=theirs)
    own = read_contrast(*sides)
    assert (own.harmful[0], own.harmless[0], own.neutral) == ("a 0", "b 0", {})
    assert read_contrast(*sides, odd).neutral == {"borderline": ["How do I kill a process?"]}
    with pytest.raises(MarsError, match="go together"):
        read_contrast(sides[0], None)


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


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_a_file_of_too_many_bytes_or_lines_is_refused(tmp_path, name):
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(65 << 20)  # zeros, which take no room on the disk
    with pytest.raises(MarsError, match=rf"{name}: more than 67108864 bytes"):
        read_prompts(path)
    path.write_bytes(b"\n" * 200_001)
    with pytest.raises(MarsError, match=rf"{name}: found 200001 lines, expected at most 200000"):
        read_prompts(path)


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
