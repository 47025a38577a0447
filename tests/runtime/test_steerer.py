"""Replies that begin with a thought: the first token of the answer is judged and steered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llama_cpp import LogitsProcessorList
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from models import CLOSED, DEMO, DEMO_MMPROJ, OPEN, OPTIONS, assistant, picture, steer, tapped, user
from models import vector as vector_of
from templates import with_template
from thinking import ALWAYS, BARE, Logits, Script, write_likely
from tiny import FAMILIES, Family, templates

from mars_gguf.errors import SteeringError
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.reading import logits as logits_of
from mars_gguf.runtime.tap import LayerOutput, Rows
from mars_gguf.runtime.turns import ChatPrompt
from mars_gguf.vectors import Vector

QUESTION = [user("How do I make bread?")]
SEEING = [user("What is on it?", picture(1, 56))]
FOLLOW_UP = user("Where do people keep tea?")


# Models ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    path: str
    mmproj: str
    source: str


def family(folder: Path, name: str, chat: Any = None) -> Model:
    given: Family = FAMILIES[name]
    given = replace(given, chat=chat or given.chat)
    model, mmproj = given.write(folder)
    return Model(str(model), str(mmproj), given.chat.template)


BEYOND_THE_CORE = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3vl", "glm4v")]


@pytest.fixture(scope="session", params=["demo", "bare", "qwen35", "gemma4", *BEYOND_THE_CORE])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The shipped model with a template that opens a thought, or leaves it to the model; and tiny
    ones, with markers of one token (Gemma's of two), one of them with memory that cannot be
    rewound."""
    folder = tmp_path_factory.mktemp("thinks")
    match request.param:
        case "demo" | "bare":
            source = ALWAYS if request.param == "demo" else BARE
            return Model(with_template(folder / "model.gguf", source), DEMO_MMPROJ, source)
        case "qwen3vl":
            return family(folder, "qwen3vl", templates.QWEN_3_VL_THINKING)
        case name:
            return family(folder, name)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("thinks")
    return Model(with_template(folder / "model.gguf", ALWAYS), DEMO_MMPROJ, ALWAYS)


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("thinks")
    return Model(with_template(folder / "model.gguf", BARE), DEMO_MMPROJ, BARE)


def vector(model: Model, opens: float, layer: int = -1, reasoning: str = "answer") -> Vector:
    given = vector_of(model.path, layer, opens)
    return replace(given, model=replace(given.model, reasoning=reasoning, chat_template_kwargs=""))


def steered(model: Model, opens: float, **options: Any) -> SteeredLlama:
    given = options.pop("vector", None) or vector(model, opens, options.pop("layer", -1))
    options = OPTIONS | {"mmproj": model.mmproj, "n_ctx": 1024} | options
    llama = SteeredLlama(model.path, vector=given, **options)
    return llama


def plain(model: Model, **options: Any) -> SteeredLlama:
    """A plain Llama in all that matters: a SteeredLlama that writes prompts as they were."""
    reasoning = options.pop("reasoning", "answer")
    options = OPTIONS | {"mmproj": model.mmproj, "n_ctx": 1024} | options
    return tapped(model.path, reasoning=reasoning, **options)


def tokens_of(llama: llama_cpp.Llama, text: str) -> list[int]:
    return llama.tokenize(text.encode(), add_bos=False, special=True)


def reply_of(llama: SteeredLlama, blank: str = "\n") -> tuple[list[int], int]:
    """Tokens of a thought and an answer, and how many of them stand before the answer."""
    markers = llama.template.thinks
    assert markers is not None
    opened = llama.template.render(QUESTION).begun
    thought = ("" if opened else markers.open) + "tea and hats" + markers.close
    before = tokens_of(llama, thought) + tokens_of(llama, blank) * bool(blank)
    return before + tokens_of(llama, "keep bread near the kite"), len(before)


def say(
    llama: llama_cpp.Llama, messages: Any, forced: Sequence[int] = (), n: int = 0, **options: Any
) -> tuple[Logits, Any]:
    """The logits of each token of a reply, [n, n_vocab], and the reply."""
    script = Script(forced)
    reply: Any = llama.create_chat_completion(
        messages, logits_processor=LogitsProcessorList([script]),
        **{"max_tokens": n or len(forced) + 2, "temperature": 0.0, "repeat_penalty": 1.0} | options,
    )  # fmt: skip
    reply = list(reply) if options.get("stream") else reply
    return np.stack(script.rows), reply


def say_plainly(
    llama: SteeredLlama, messages: Any, forced: Sequence[int] = (), n: int = 0
) -> Logits:
    """The same, of a model without chat handlers: its prompt decoded into the context chunk by
    chunk, as llama-cpp-python's handlers for pictures do."""
    chunks = llama.chunks(messages)
    llama.reset()
    llama._ctx.kv_cache_clear()
    for chunk in chunks:
        if chunk.is_text:
            llama.eval(chunk.tokens)
        else:
            assert llama.projector is not None
            end = llama.projector.decode(llama.ctx, chunk, llama.n_tokens)
            llama.input_ids[llama.n_tokens : end] = -1
            llama.n_tokens = end
    script = Script(forced)
    prompt = llama.input_ids[: llama.n_tokens].tolist()
    llama.create_completion(
        prompt, max_tokens=n or len(forced) + 2, temperature=0.0, repeat_penalty=1.0,
        logits_processor=LogitsProcessorList([script]),
    )  # fmt: skip
    return np.stack(script.rows)


def judged_at(llama: SteeredLlama, rows: Logits, forced: Sequence[int], before: int) -> int:
    """How many tokens of a dictated reply stand before the one that is judged to begin the answer:
    the first after the thought that the model would not have blank."""
    blank = len(tokens_of(llama, "\n"))
    for n in range(before - blank, before):
        piece = llama.detokenize([int(rows[n].argmax())], special=True)
        if piece.strip():
            return n
    return before


def steering_of(llama: SteeredLlama) -> Any:
    assert llama.last_steering is not None
    return llama.last_steering


def reading(
    llama: SteeredLlama, messages: Any, layer: int, at: Sequence[int], steer: Vector | None = None
) -> list[Rows]:
    """From now on, keep the state of the last row after block ``layer``, when the prompt (``at`` 0)
    or the token of that number is evaluated, and steer it there by ``steer``."""
    seen: list[Rows] = []
    original, count = llama.eval, -sum(c.is_text for c in llama.chunks(messages))

    def visit(output: LayerOutput) -> None:
        if output.n_rows:
            row = output.read(output.n_rows - 1)
            seen.append(row[0])
            if steer is not None:
                modality = "image" if messages is SEEING else "text"
                decision = steer.policy().decide(row[0], modality)
                assert decision.alpha > 0
                output.write(output.n_rows - 1, row + addition_for(steer, decision.alpha))

    def counted(tokens: Any) -> None:
        nonlocal count
        count += bool(tokens)
        if count in at:
            with llama.tap.visiting([layer], visit):
                original(tokens)
        else:
            original(tokens)

    llama.eval = counted  # type: ignore[method-assign]
    return seen


def addition_for(given: Vector, alpha: float) -> Rows:
    r = (given.geometry.unsafe - given.geometry.safe).astype(np.float64)
    return (alpha * (r / np.linalg.norm(r))).astype(np.float32)


# A closed gate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [QUESTION, SEEING], ids=["text", "picture"])
def test_a_closed_gate_changes_nothing_over_three_turns(model: Model, first: Any) -> None:
    reference = plain(model)
    llama, streaming = steered(model, CLOSED), steered(model, CLOSED)
    forced, _ = reply_of(reference)
    messages = list(first)
    for question in (FOLLOW_UP, user("And hats?", picture(2, 56)), FOLLOW_UP):
        expected = say_plainly(reference, messages, forced)
        logits, reply = say(llama, messages, forced)
        streamed, chunks = say(streaming, messages, forced, stream=True)
        assert np.array_equal(logits, expected)
        assert np.array_equal(streamed, expected)
        for steering in (steering_of(llama), chunks[-1]["mars"]):
            report = steering if isinstance(steering, dict) else vars(steering)
            assert (report["position"], report["alpha"]) == ("answer", 0.0)
        messages += [assistant(reply["choices"][0]["message"]["content"]), question]
    for each in (reference, llama, streaming):
        each.close()


def test_a_closed_gate_draws_the_same_tokens(model: Model) -> None:
    reference, llama = plain(model), steered(model, CLOSED)
    tokens = reference.chunks(QUESTION)[0].tokens
    forced, _ = reply_of(reference)
    sampling = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}
    for n in (len(forced), 5):
        scripts = Script(forced[:n]), Script(forced[:n])
        kept = []
        options: Any = sampling | {"max_tokens": 40, "repeat_penalty": 1.0}
        for each, script in zip((reference, llama), scripts, strict=True):
            options["logits_processor"] = LogitsProcessorList([script])
            if each is llama:
                each.create_chat_completion(QUESTION, **options)
            else:
                each.reset()
                each._ctx.kv_cache_clear()
                each.create_completion(list(tokens), **options)
            kept.append(np.stack(script.rows))
        assert np.array_equal(*kept)
    for one in (reference, llama):
        one.close()


# The answer is judged, and steered ---------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, -1])
@pytest.mark.parametrize("messages", [QUESTION, SEEING], ids=["text", "picture"])
def test_what_is_judged_is_the_state_before_the_answer(
    model: Model, messages: Any, layer: int
) -> None:
    reference, llama = plain(model), steered(model, CLOSED, layer=layer)
    forced, before = reply_of(reference)
    seen = reading(reference, messages, llama.vectors["mars"].layer, [before])
    say_plainly(reference, messages, forced)
    say(llama, messages, forced)
    steering, given = steering_of(llama), llama.vectors["mars"].geometry
    assert steering.position == "answer"
    assert steering.t == given.coordinate(seen[0], steering.modality)
    for each in (reference, llama):
        each.close()


@pytest.mark.parametrize("messages", [QUESTION, SEEING], ids=["text", "picture"])
def test_an_open_gate_is_an_independent_callback_to_the_bit(model: Model, messages: Any) -> None:
    reference, llama = plain(model), steered(model, OPEN)
    forced, before = reply_of(reference)
    opened = reference.template.render(messages).begun
    rows = say_plainly(reference, messages, forced)
    at = [judged_at(reference, rows, forced, before)]
    if not opened:
        at.append(0)  # where this model would not have begun a thought by itself
    logits, reply = say(llama, messages, forced)
    steering = steering_of(llama)
    assert reply["mars"] == steering.report()
    assert steering.alpha > 0 and (steering.position, steering.way) == ("answer", "inline")
    reading(reference, messages, llama.vectors["mars"].layer, at, llama.vectors["mars"])
    assert np.array_equal(logits, say_plainly(reference, messages, forced))
    _, chunks = say(llama, messages, forced, stream=True)
    assert chunks[-1]["mars"]["alpha"] == steering.alpha
    if opened and llama.context.memory.rewinds:
        other = steered(model, OPEN, way="cvec")
        again, _ = say(other, messages, forced)
        assert np.array_equal(again, logits) and steering_of(other).way == "cvec"
        other.close()
    for each in (reference, llama):
        each.close()


# What the model would rather not say -------------------------------------------------------------


@pytest.fixture(scope="session")
def likely(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes models that find one token likelier than any other, always."""
    made: dict[str, Model] = {}

    def make(token: str, *markers: str) -> Model:
        if token not in made:
            folder = tmp_path_factory.mktemp("likely")
            paths = write_likely(folder, token, BARE, markers)
            made[token] = Model(*paths, BARE)
        return made[token]

    return make


NEWLINE = "Ċ"


@pytest.mark.parametrize("text", [NEWLINE, "<think>"])
def test_an_unlikely_answer_is_judged_after_the_fact_and_drawn_again_if_the_gate_opens(
    likely: Any, text: str
) -> None:
    model = likely(text, "<think>", "</think>")
    reference, llama, closed = plain(model), steered(model, OPEN), steered(model, CLOSED)
    forced, before = reply_of(reference, blank="")
    expected = say_plainly(reference, QUESTION, forced)
    logits, _ = say(closed, QUESTION, forced)
    assert np.array_equal(logits, expected)
    assert steering_of(closed).position == "answer"
    logits, _ = say(llama, QUESTION, forced)
    assert steering_of(llama).alpha > 0
    given = llama.vectors["mars"]
    seen = reading(reference, QUESTION, given.layer, [before], given)
    assert np.array_equal(logits, say_plainly(reference, QUESTION, forced))
    assert steering_of(llama).t == llama.vectors["mars"].geometry.coordinate(seen[0], "text")
    for each in (reference, llama, closed):
        each.close()


def test_it_cannot_be_drawn_again_under_a_grammar_and_is_an_error(likely: Any) -> None:
    llama = steered(likely(NEWLINE, "<think>", "</think>"), OPEN)
    grammar = llama_cpp.LlamaGrammar.from_string("root ::= [^~]*", verbose=False)
    tokens = llama.chunks(QUESTION)[0].tokens
    processor = LogitsProcessorList([Script(tokens_of(llama, "keep tea"))])
    llama.chat_prompt = ChatPrompt(begun=False)  # a chat handler's word that a thought may come
    with pytest.raises(SteeringError, match="under a grammar"):
        llama.create_completion(list(tokens), grammar=grammar, logits_processor=processor)
    llama.close()


@pytest.mark.parametrize("opens", [OPEN, CLOSED])
def test_what_began_like_a_thought_and_was_none_is_not_left_unjudged(
    likely: Any, opens: float
) -> None:
    """Where the marker is several tokens, its first may begin an answer, too."""
    model = likely("<")
    llama, reference = steered(model, opens), plain(model)
    first, *rest = tokens_of(llama, "<think>")
    assert rest
    forced = [first, *tokens_of(llama, "keep bread")]
    if opens == CLOSED:
        seen = reading(reference, QUESTION, llama.vectors["mars"].layer, [0])
        expected = say_plainly(reference, QUESTION, forced)
        logits, _ = say(llama, QUESTION, forced)
        assert np.array_equal(logits, expected)
        assert steering_of(llama).position == "prompt"
        assert steering_of(llama).t == llama.vectors["mars"].geometry.coordinate(seen[0], "text")
    else:
        with pytest.raises(SteeringError, match="where a thought was expected"):
            say(llama, QUESTION, forced)
    for each in (reference, llama):
        each.close()


def test_a_steered_answer_may_begin_like_a_thought(likely: Any) -> None:
    llama = steered(likely("t"), OPEN)
    forced = tokens_of(llama, "< keep bread")
    assert llama.template.thinks is not None
    assert tokens_of(llama, llama.template.thinks.open)[0] == forced[0]
    say(llama, QUESTION, forced)
    assert steering_of(llama).alpha > 0 and steering_of(llama).position == "prompt"
    llama.close()


@pytest.mark.parametrize("begins", ["<think>tea", "keep tea"])
def test_an_answer_that_begins_within_the_token_that_ends_the_marker_is_judged(
    tmp_path: Path, begins: str
) -> None:
    model = Model(*write_likely(tmp_path, "t", BARE, (">Yes",)), BARE)
    llama, reference = steered(model, OPEN), plain(model)
    before = tokens_of(llama, f"{begins}</think")
    forced = [*before, *tokens_of(llama, ">Yes, bread")]
    logits, _ = say(llama, QUESTION, forced)
    assert steering_of(llama).position == "answer"
    given = llama.vectors["mars"]
    seen = reading(reference, QUESTION, given.layer, [0, len(before)], given)
    assert np.array_equal(logits, say_plainly(reference, QUESTION, forced))
    assert steering_of(llama).t == llama.vectors["mars"].geometry.coordinate(seen[-1], "text")
    for each in (reference, llama):
        each.close()


# Thoughts that do not end ------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_that_does_not_end_is_not_steered_and_reported(
    model: Model, stream: bool
) -> None:
    reference, llama = plain(model), steered(model, CLOSED)
    forced, before = reply_of(reference, blank="")
    thought = forced[: before - len(tokens_of(llama, llama.template.thinks.close))]  # type: ignore
    expected = say_plainly(reference, QUESTION, thought, len(thought))
    logits, reply = say(llama, QUESTION, thought, len(thought), stream=stream)
    assert np.array_equal(logits, expected)
    mars = (reply[-1] if stream else reply)["mars"]
    assert (mars["position"], mars["t"], mars["gate"], mars["alpha"]) == (None, None, None, 0.0)
    assert "before its answer began" in mars["note"]
    for each in (reference, llama):
        each.close()


# The rest of the reply, and what follows it ------------------------------------------------------


@pytest.mark.parametrize("keep_turns", [False, True])
def test_the_turn_after_a_steered_one_is_plain(model: Model, keep_turns: bool) -> None:
    llama, never = (steered(model, gate, keep_turns=keep_turns) for gate in (OPEN, CLOSED))
    forced, _ = reply_of(llama)
    for each in (llama, never):
        say(each, QUESTION, forced)
    assert llama.context.steered_at is not None
    assert llama.context.n_reusable <= llama.context.steered_at
    steer(llama, never.vectors["mars"])
    messages = [*QUESTION, assistant("Thus."), FOLLOW_UP]
    logits, expected = (say(each, messages, forced)[0] for each in (llama, never))
    assert np.allclose(logits, expected, atol=0.05 if keep_turns else 0, rtol=0)
    for each in (llama, never):
        each.close()


@pytest.mark.parametrize("opens", [OPEN, CLOSED])
def test_drafts_wait_until_the_answer_has_begun(demo: Model, opens: float) -> None:
    alone, drafting = (
        steered(demo, opens, mmproj=None, draft_model=draft, logits_all=True)
        for draft in (None, LlamaPromptLookupDecoding(max_ngram_size=1, num_pred_tokens=4))
    )
    forced, _ = reply_of(alone)
    forced = forced[:5] * 2 + forced + forced[:5] * 4
    grown: list[tuple[bool, int]] = []
    original = drafting.eval

    def counted(tokens: Any) -> None:
        reply, start = drafting.steerer.turns.reply, drafting.n_tokens
        waits, begun = reply.state != "answer", reply.last is not None
        original(tokens)
        if reply.in_step and begun:
            grown.append((waits, drafting.n_tokens - start))

    drafting.eval = counted  # type: ignore[method-assign]
    replies = []
    for llama in (alone, drafting):
        processor = LogitsProcessorList([Script(forced, drafts=True)])
        options: Any = {"max_tokens": len(forced), "temperature": 0.0, "repeat_penalty": 1.0}
        replies.append(
            llama.create_chat_completion(QUESTION, logits_processor=processor, **options)
        )
    one, other = ((r["choices"][0]["message"]["content"], r["mars"]) for r in replies)
    assert one[0] == other[0] and "keep bread" in one[0]
    assert one[1]["t"] == other[1]["t"] and one[1]["position"] == other[1]["position"] == "answer"
    assert {n for waits, n in grown if waits} == {1}
    assert max(n for waits, n in grown if not waits) > 1
    for each in (alone, drafting):
        each.close()


# Which token counts ------------------------------------------------------------------------------


@pytest.mark.parametrize(("reasoning", "position"), [("off", "prompt"), ("thought", "thought")])
def test_otherwise_the_end_of_the_prompt_is_judged(
    demo: Model, reasoning: str, position: str
) -> None:
    llama = steered(demo, OPEN, vector=vector(demo, OPEN, reasoning=reasoning))
    reference = plain(demo, reasoning=reasoning)
    seen = reading(reference, QUESTION, llama.vectors["mars"].layer, [0])
    say_plainly(reference, QUESTION, n=1)
    _, reply = say(llama, QUESTION, n=1)
    assert reply["mars"]["position"] == position and reply["mars"]["alpha"] > 0
    assert reply["mars"]["t"] == llama.vectors["mars"].geometry.coordinate(seen[0], "text")
    for each in (reference, llama):
        each.close()


def test_raw_prompts_are_judged_at_their_end(demo: Model) -> None:
    llama = steered(demo, OPEN)
    forced, _ = reply_of(llama)
    say(llama, QUESTION, forced)
    for prompt in ("How do I make bread?", "<|im_start|>assistant\n<think>"):
        llama.create_completion(prompt, max_tokens=1)
        assert steering_of(llama).position == "prompt" and steering_of(llama).alpha > 0
        llama.eval(tokens_of(llama, "And hats?"))
        llama.sample()
        assert steering_of(llama).position == "prompt"
    llama.close()


@pytest.mark.parametrize("seeing", [False, True])
def test_a_chat_that_failed_leaves_nothing_for_a_raw_prompt(demo: Model, seeing: bool) -> None:
    class Picky(SteeredLlama):
        def create_completion(self, *args: Any, logit_bias: Any = None, **kwargs: Any) -> Any:
            if logit_bias is not None:
                raise ValueError("not that")
            return super().create_completion(*args, **kwargs)

    mmproj = demo.mmproj if seeing else None
    llama = Picky(demo.path, vector=vector(demo, OPEN), mmproj=mmproj, **OPTIONS)
    with pytest.raises(ValueError, match="not that"):
        llama.create_chat_completion(QUESTION, logit_bias={"1": 1.0})
    llama.create_completion("How do I make bread?", max_tokens=1)
    assert steering_of(llama).position == "prompt" and steering_of(llama).alpha > 0
    llama.close()


def test_replies_that_follow_a_grammar_have_no_thought(demo: Model, bare: Model) -> None:
    tool = {"type": "function", "function": {"name": "warm", "parameters": {"type": "object"}}}
    chosen = {"type": "function", "function": {"name": "warm"}}
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
    for model in (demo, bare):
        for mmproj in (None, model.mmproj):
            llama = steered(model, OPEN, mmproj=mmproj)
            for bound in (
                {"response_format": {"type": "json_object"}}, {"grammar": grammar},
                {"tools": [tool], "tool_choice": chosen},
            ):  # fmt: skip
                reply: Any = llama.create_chat_completion(QUESTION, max_tokens=3, **bound)
                assert reply["mars"]["position"] == "prompt" and reply["mars"]["alpha"] > 0
                text = llama.detokenize(llama.input_ids[: llama.n_tokens].tolist(), special=True)
                assert b"</think>" in text
            llama.close()


# Other policies ----------------------------------------------------------------------------------


def replied(llama: llama_cpp.Llama, n: int = 4) -> tuple[Logits, Any]:
    llama.reset()
    return say(llama, QUESTION, n=n)


def test_other_policies_steer_within_a_block_and_the_models_own_after_it() -> None:
    own, other = vector_of(DEMO, 2, OPEN), vector_of(DEMO, 5, OPEN)
    llama = SteeredLlama(DEMO, vector=own, **OPTIONS)
    expected, alone = replied(llama)[0], SteeredLlama(DEMO, vector=other, **OPTIONS)
    before = llama.policies
    assert [policy.name for policy in before] == ["mars"]
    with llama.using(other.policy("other")):
        assert [policy.name for policy in llama.policies] == ["other"]
        logits, reply = replied(llama)
        assert np.array_equal(logits, replied(alone)[0])
        assert reply["mars"]["layer"] == 5 and reply["mars"]["alpha"] > 0
        with llama.using(replace(own.policy(), gate="shut")):
            assert replied(llama)[1]["mars"]["alpha"] == 0.0
        assert np.array_equal(replied(llama)[0], logits)
    assert llama.policies == before
    assert np.array_equal(replied(llama)[0], expected)
    with pytest.raises(KeyError), llama.using():
        raise KeyError
    assert llama.policies == before
    with pytest.raises(ValueError, match="two of one name"), llama.using(*before, *before):
        pass
    assert llama.policies == before


def test_without_policies_nothing_is_steered() -> None:
    llama = SteeredLlama(DEMO, vector=vector_of(DEMO, 2, OPEN), **OPTIONS)
    plainly = replied(llama_cpp.Llama(DEMO, **OPTIONS))[0]
    expected = replied(llama)[0]
    with llama.using():
        logits, reply = replied(llama)
        assert np.array_equal(logits, plainly)
        assert reply.get("mars") is None and llama.last_steering is None
    assert np.array_equal(replied(llama)[0], expected)
    assert not np.array_equal(expected, plainly)


def test_a_model_without_a_vector_is_measured_and_not_sampled_from() -> None:
    llama, reference = SteeredLlama(DEMO, vector=None, **OPTIONS), llama_cpp.Llama(DEMO, **OPTIONS)
    tokens = tokens_of(llama, "How do I make bread?")
    for each in (llama, reference):
        each.eval(tokens)
    assert np.array_equal(logits_of(llama), logits_of(reference))
    for ask in (llama.sample, lambda: replied(llama), lambda: next(llama.generate(tokens))):
        with pytest.raises(SteeringError, match="without a vector, .* nothing can be sampled"):
            ask()
    given = vector_of(DEMO, 2, OPEN)
    expected = replied(SteeredLlama(DEMO, vector=given, **OPTIONS))[0]
    with llama.using(given.policy()):
        assert np.array_equal(replied(llama)[0], expected)
    with pytest.raises(SteeringError, match="without a vector"):
        replied(llama)
