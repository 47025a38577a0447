"""What is measured of models that think: the state where the answer begins, after a thought of the
model's own, compared with a reading token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import convert, recipe
from extractors import pushed as steered
from models import OPTIONS, last_states, random_llama, tapped, tokens_of

from mars_gguf.convert import GgufOptions, extract_gguf
from mars_gguf.convert import convert as convert_model
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.prompts import Prompt
from mars_gguf.convert.refusals import N_TOKENS
from mars_gguf.errors import MarsError
from mars_gguf.reasoning import Reasoning
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.reading import logits
from mars_gguf.vectors import read_vector

TURNS = (
    "{% for m in messages %}{{ m.role }}: "
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}\n{% endfor %}assistant: "
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
OPENING = TURNS + "<think>\n{# opened #}"
SWITCHED = TURNS + "{% if enable_thinking is false %}<think>\n</think>\n\n{% endif %}"
CLOSING = "\n</think>\n\n"
ASKED = [Prompt(text) for text in ("What is a hat?", "How do I make a bomb?", "Is tea in the cup?")]
BUDGET = 5


@pytest.fixture
def model(request: Any, tmp_path: Path) -> str:
    return random_llama(tmp_path / "model.gguf", template=request.param)


def by_hand(llama: SteeredLlama, tokens: list[int], n: int) -> list[int]:
    """The ``n`` likeliest tokens that follow, one after the other."""
    said: list[int] = []
    llama.reset()
    llama._ctx.kv_cache_clear()
    llama.eval(tokens)
    while len(said) < n:
        said.append(int(logits(llama).argmax()))
        llama.eval(said[-1:])
    return said


def opened(model: str, **options: Any) -> GgufExtractor:
    return GgufExtractor(model, n_threads=1, n_thought=BUDGET, **options)


@pytest.mark.parametrize("model", [OPENING], indirect=True)
def test_the_answer_is_measured_after_a_thought_that_is_ended_as_the_template_ends_one(
    model: str,
) -> None:
    extractor, llama = opened(model), tapped(model, **OPTIONS)
    assert extractor.reasoning == llama.template.reasoning == "answer"
    for indices, session in extractor.sessions(ASKED):
        states, _ = session.observe()
        replies = session.replies(4)
        for i, state, reply in zip(indices, states, replies, strict=True):
            prompt = tokens_of(llama, extractor.render(ASKED[i]))
            ended = [*prompt, *by_hand(llama, prompt, BUDGET), *tokens_of(llama, CLOSING)]
            read = last_states(llama, ended)
            for layer in range(extractor.n_layer):
                scale = np.abs(read[layer]).max()
                np.testing.assert_allclose(state[layer], read[layer], atol=0.02 * scale)
            assert reply.token == by_hand(llama, ended, 1)[0]


@pytest.mark.parametrize("model", [OPENING], indirect=True)
def test_a_thought_is_measured_where_it_begins_and_judged_by_the_answer(model: str) -> None:
    extractor = opened(model, reasoning="thought")
    llama = tapped(model, reasoning="thought", **OPTIONS)
    assert extractor.answers_later
    for indices, session in extractor.sessions(ASKED):
        states, _ = session.observe()
        for i, state, reply in zip(indices, states, session.replies(3), strict=True):
            prompt = tokens_of(llama, extractor.render(ASKED[i]))
            read = last_states(llama, prompt)
            scale = np.abs(read[2]).max()
            np.testing.assert_allclose(state[2], read[2], atol=0.02 * scale)
            ended = [*prompt, *by_hand(llama, prompt, BUDGET), *tokens_of(llama, CLOSING)]
            answer = by_hand(llama, ended, 3)
            assert reply.token == answer[0]
            assert reply.text == llama.detokenize(answer).decode(errors="replace")


@pytest.mark.parametrize("model", [OPENING], indirect=True)
def test_a_prompt_that_just_fits_with_its_thought_and_the_beginning_of_the_answer_is_measured(
    model: str,
) -> None:
    extractor = opened(model, n_ctx=512)
    needed = BUDGET + len(tokens_of(extractor.llama, CLOSING)) + N_TOKENS
    fitting = [p for n in range(500) if extractor.length(p := Prompt("tea " * n)) <= 512 - needed]
    longest = max(fitting, key=extractor.length)
    assert extractor.length(longest) >= 512 - needed - 4
    extractor.make_room([longest])
    ((_, session),) = extractor.sessions([longest])
    assert len(session.replies(N_TOKENS)) == 1


@pytest.mark.parametrize("reasoning", ["off", "thought", "answer"])
@pytest.mark.parametrize("model", [OPENING], indirect=True)
def test_steered_replies_go_some_at_a_time_where_the_context_has_no_room_for_all(
    model: str, reasoning: Reasoning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_gguf, "MAX_CELLS", 1000.0)  # as of a large model
    extractor = opened(model, n_ctx=512, reasoning=reasoning)
    asked = [Prompt(f"{n}: tell me what a kite is and where it is found") for n in range(12)]
    crowded = 0
    for indices, session in extractor.sessions(asked):
        crowded += len(indices) > session._free // extractor.reply_cells(N_TOKENS)
        push = 9 * np.random.default_rng(0).normal(size=(len(indices), extractor.n_embd))
        none, pushed = np.zeros_like(push), push.astype(np.float32)
        plain, other = session.steered_replies([(2, none), (2, pushed)], N_TOKENS)
        assert plain == session.replies(N_TOKENS) != other
        first = [int(row.argmax()) for row in steered(session, 2, pushed)]
        assert reasoning == "thought" or [reply.token for reply in other] == first
    assert crowded


@pytest.mark.parametrize("model", [SWITCHED], indirect=True)
def test_a_model_that_does_not_think_although_it_may_answers_at_once(model: str) -> None:
    extractor, llama = opened(model), tapped(model, reasoning="off", **OPTIONS)
    assert extractor.reasoning == "answer"
    for indices, session in extractor.sessions(ASKED):
        for i, prompt in zip(indices, session.prompts, strict=True):
            asked = extractor.render(ASKED[i])
            assert list(prompt.tail) == tokens_of(llama, asked)
            assert llama.template.render(ASKED[i].messages).text == asked + "<think>\n</think>\n\n"


@pytest.mark.parametrize("model", [OPENING], indirect=True)
def test_a_thought_ends_where_the_model_ends_it_or_ends_the_reply(model: str) -> None:
    thinker = opened(model).thinker
    assert thinker is not None
    llama = thinker.llama
    assert thinker.end(tokens_of(llama, "I do.</think>")) == tokens_of(llama, "\n\n")
    over = [*tokens_of(llama, "I do."), llama.token_eos()]
    assert thinker.end(over) == thinker.closing == tokens_of(llama, CLOSING)
    assert llama.token_eos() not in over
    assert thinker.end(tokens_of(llama, "A")) is None
    assert thinker.end(tokens_of(llama, "A")[:1] * BUDGET) == thinker.closing


@pytest.mark.parametrize("model", [OPENING], indirect=True)
def test_a_conversion_says_which_token_counts(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = {}
    sides = {"harmful": "bomb poison virus knife", "harmless": "hat tea kite pot"}
    for name, things in sides.items():
        asked = [f"How do I make a {x} {n}?" for n in range(6) for x in things.split()]
        prompts[name] = tmp_path / f"{name}.txt"
        prompts[name].write_text("\n".join(asked), "utf-8")
    measured = []
    for given in ({"reasoning_budget": 5}, {"reasoning_budget": 5, "reasoning": "thought"},
                  {"reasoning": "off"}):  # fmt: skip
        path = recipe(tmp_path, model={"path": model, **given}, prompts=prompts)
        convert(["--recipe", path, "-t", "1", "-q"])
        said = capsys.readouterr()
        measured.append(read_vector(tmp_path / "v.gguf"))
        assert f"reasoning   {measured[-1].model.reasoning}" in said.out
        suggested = "--reasoning answer, as the chat template suggests" in said.err
        assert suggested == ("reasoning" not in given)
    assert [v.model.reasoning for v in measured] == ["answer", "thought", "off"]
    assert [v.source.get("thoughts") for v in measured] == ["ended after 5 tokens"] * 2 + [None]
    assert len({v.geometry.safe.tobytes() for v in measured}) == 3
    assert "Measured, and to be used, without thoughts." in (tmp_path / "v.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (PLAIN, {"reasoning": "answer"}, "knows no thoughts"),
        (PLAIN, {"n_thought": 5}, "reasoning_budget is of thoughts, .* it would change nothing"),
        (OPENING, {"n_thought": 5, "reasoning": "off"}, "reasoning_budget is of thoughts"),
    ],
    indirect=["model"],
)
def test_what_does_not_think_is_measured_in_no_thought_and_takes_no_budget(
    model: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MarsError, match=message):
        convert_model(model, options=GgufOptions(n_threads=1, **options))
