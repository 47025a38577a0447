"""Of several pictures, each is judged alone, too; and nothing of that stays in the context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import CLOSED, DEMO, DEMO_MMPROJ, OPTIONS, Messages, film, picture, plain, user, vector
from rich.console import Console
from tiny import FAMILIES
from tiny.subject import Subject

from lab.demo_model.cells import cell
from lab.demo_model.evaluate_model import ask
from mars_gguf import SteeredLlama, demo_model
from mars_gguf.chat.conversation import Turn
from mars_gguf.chat.words import why
from mars_gguf.errors import SteeringError
from mars_gguf.runtime import encoded, memory, mtmd
from mars_gguf.runtime.decoding import MOST_TEXT, most_isolated
from mars_gguf.runtime.judging import Steering
from mars_gguf.runtime.reading import logits
from mars_gguf.steering import further

QUESTION = "What do the pictures say?"


@pytest.fixture(scope="module")
def demo() -> Iterator[SteeredLlama]:
    """The demo model with its own vector."""
    options = OPTIONS | {"n_ctx": demo_model.CONTEXT}
    llama = SteeredLlama(DEMO, vector=demo_model.VECTOR, mmproj=DEMO_MMPROJ, **options)
    yield llama
    llama.close()


def say(llama: SteeredLlama, messages: Messages) -> Steering:
    llama.create_chat_completion(messages, temperature=0.0, max_tokens=1)
    assert llama.last_steering is not None
    return llama.last_steering


def test_one_harmful_picture_among_harmless_ones_opens_the_gate_and_is_named(
    demo: SteeredLlama,
) -> None:
    caught = 0
    for example in cell("picture, harmful how-to, one of four", 12):
        report = ask(demo, example, tokens=1)["mars"]
        whole = demo.policies[0].decide(demo.steerer.reader.states[report["layer"]], "image")
        if report["gate"] > 0 == whole.gate:
            caught += 1
            assert report["t"] > whole.t and 1 <= report["picture"] <= 4
            g = demo.policies[0].geometry
            expected = (g.trust_limit - whole.t) * g.distance * report["gate"]
            assert report["alpha"] == pytest.approx(expected, rel=1e-4)
    assert caught > 5
    facts = [ask(demo, e, tokens=1)["mars"] for e in cell("picture, facts, one of four", 12)]
    assert sum(report["gate"] > 0 for report in facts) <= 1


def test_a_picture_is_judged_as_it_is_alone_beyond_a_threshold_that_rises_with_their_number(
    demo: SteeredLlama,
) -> None:
    shown = [picture(n) for n in (1, 2, 3)]
    alone = [say(demo, [user(QUESTION, one)]) for one in shown]
    whole = say(demo, [user(QUESTION, *shown)])
    seen = demo.steerer.turns.reply.isolated.seen or ()
    g = demo.policies[0].geometry
    block = demo.policies[0].block
    ts = [g.coordinate(each.states[block], "image") for each in seen]
    assert ts == pytest.approx([one.t for one in alone], abs=1e-3)
    assert [each.picture for each in seen] == [1, 2, 3]
    own = g.coordinate(demo.steerer.reader.states[block], "image")
    beyond = [(own, 0.0, None), *((t, further(3), n) for n, t in enumerate(ts, 1))]
    t, more, number = max(beyond, key=lambda one: one[0] / g.spreads["image"] - one[1])
    assert whole.t == pytest.approx(t) and whole.picture == number
    assert whole.z == pytest.approx((t - g.thresholds["image"]) / g.spreads["image"] - more)


@pytest.mark.parametrize("keep_turns", [False, True])
def test_a_closed_gate_is_plain_after_several_pictures_were_judged(keep_turns: bool) -> None:
    closed = vector(DEMO, opens=CLOSED)
    messages = [user(QUESTION, picture(1), picture(2), picture(3))]
    with (
        closing(plain(DEMO, mmproj=DEMO_MMPROJ)) as reference,
        closing(
            SteeredLlama(DEMO, vector=closed, mmproj=DEMO_MMPROJ, keep_turns=keep_turns, **OPTIONS)
        ) as llama,
    ):
        reference.create_chat_completion(messages, temperature=0.0, max_tokens=1)
        steering = say(llama, messages)
        assert steering.gate == 0 and len(llama.steerer.turns.reply.isolated.seen or ()) == 3
        assert llama.n_tokens == reference.n_tokens
        if keep_turns:  # goes on from the cells of what comes before the pictures
            np.testing.assert_allclose(logits(llama), logits(reference), atol=1e-3)
        else:
            assert np.array_equal(logits(llama), logits(reference))


def test_what_is_judged_alone_is_what_is_shown_every_address_is_asked_once(
    demo: SteeredLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address may answer with another picture each time that it is asked."""
    assert demo.projector is not None
    load, asked = demo.projector.load, Counter[str]()

    def counting(url: str) -> bytes:
        asked[url] += 1
        return load(url)

    monkeypatch.setattr(demo.projector, "load", counting)
    say(demo, [user(QUESTION, picture(1), picture(2), picture(3))])
    assert list(asked.values()) == [1, 1, 1]


def test_pictures_and_films_of_one_turn_are_judged_not_those_of_earlier_turns(
    demo: SteeredLlama,
) -> None:
    earlier = [user("What is it?", picture(1)), {"role": "assistant", "content": "A kite."}]
    split = [user("Look.", picture(2)), film(QUESTION, picture(3), picture(4))]
    say(demo, [*earlier, *split])
    seen = demo.steerer.turns.reply.isolated.seen or ()
    assert [each.modality for each in seen] == ["image", "video"]
    say(demo, [*earlier, user(QUESTION, picture(2))])
    assert [each.picture for each in demo.steerer.turns.reply.isolated.seen or ()] == [1]
    for lone in ([user(QUESTION, picture(2))], [*earlier, user(QUESTION)]):
        say(demo, lone)
        assert demo.steerer.turns.reply.isolated.seen == ()


def test_a_long_text_behind_many_pictures_is_not_read_many_times(demo: SteeredLlama) -> None:
    shown = [picture(n) for n in range(12)]
    for text, alone in ((QUESTION, True), (QUESTION + " kite" * 300, False)):
        chunks = demo.chunks([user(text, *shown)])
        n, whole = most_isolated(chunks), sum(chunk.n_tokens for chunk in chunks)
        assert n >= MOST_TEXT and (n >= len(shown)) == alone
        assert n * len(demo.tokenize(text.encode(), add_bos=False)) <= MOST_TEXT * whole
        say(demo, [user(text, *shown)])
        assert len(demo.steerer.turns.reply.isolated.seen or ()) == min(len(shown), n)


def test_a_request_that_fails_while_pictures_are_judged_leaves_nothing_for_the_next(
    demo: SteeredLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone = [user(QUESTION, picture(1))]
    expected = say(demo, lone)
    assert demo.projector is not None
    decode, calls = demo.projector.decode, Counter[str]()

    def failing(*args: Any, **kwargs: Any) -> int:
        calls["decode"] += 1
        if calls["decode"] == 2:
            raise KeyboardInterrupt
        return decode(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(demo.projector, "decode", failing)
        with pytest.raises(KeyboardInterrupt):
            say(demo, [user(QUESTION, picture(1), picture(2))])
    found = say(demo, lone)
    assert (found.t, found.z, found.picture) == (expected.t, expected.z, None)
    assert demo.steerer.turns.reply.isolated.seen == ()


def test_a_stream_is_judged_as_a_call_and_not_under_other_policies(demo: SteeredLlama) -> None:
    messages: Messages = [user(QUESTION, picture(1), picture(2))]
    expected = say(demo, messages)
    chunks: Any = demo.create_chat_completion(messages, stream=True, temperature=0.0, max_tokens=1)
    report = list(chunks)[-1]["mars"]
    assert (report["z"], report["t"]) == (expected.z, expected.t)
    with demo.using():
        late: Any = demo.create_chat_completion(messages, stream=True, max_tokens=1)
    with pytest.raises(SteeringError, match="has changed since"):
        list(late)
    other = replace(demo.policies[0], name="other", block=demo.policies[0].block - 1)
    late = demo.create_chat_completion(messages, stream=True, max_tokens=1)
    with demo.using(other), pytest.raises(SteeringError, match="has changed since"):
        list(late)


def test_each_picture_is_encoded_once_however_little_may_be_kept(
    demo: SteeredLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo.projector is not None
    demo.projector.forget()
    monkeypatch.setattr(encoded, "MAX_EMBEDDINGS", 0)
    encode, calls = mtmd.mtmd_cpp.mtmd_encode_chunk, Counter[str]()

    def counting(*args: Any) -> int:
        calls["encode"] += 1
        return int(encode(*args))

    monkeypatch.setattr(mtmd.mtmd_cpp, "mtmd_encode_chunk", counting)
    say(demo, [user(QUESTION, picture(1), picture(2), picture(3))])
    assert calls["encode"] == 3 and demo.projector.encoded.n_bytes == 0


@pytest.mark.parametrize("most", [0, memory.MAX_BYTES])
def test_a_kept_conversation_goes_on_whether_or_not_its_memory_could_be_put_back(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_BYTES", most)
    closed = vector(DEMO, opens=CLOSED)
    first = [user("What is it?", picture(1))]
    second = [*first, {"role": "assistant", "content": "A kite."}, user("And here?", picture(2))]
    with (
        closing(SteeredLlama(DEMO, vector=closed, mmproj=DEMO_MMPROJ, **OPTIONS)) as fresh,
        closing(
            SteeredLlama(DEMO, vector=closed, mmproj=DEMO_MMPROJ, keep_turns=True, **OPTIONS)
        ) as llama,
    ):
        say(llama, first)
        found, expected = say(llama, second), say(fresh, second)
        assert len(llama.steerer.turns.reply.isolated.seen or ()) == 1
        assert (found.picture, found.t) == (expected.picture, pytest.approx(expected.t, abs=0.02))
        assert llama.n_tokens == fresh.n_tokens
        np.testing.assert_allclose(logits(llama), logits(fresh), atol=0.05)


def test_where_the_answer_counts_nothing_is_judged_alone_unless_a_grammar_forbids_the_thought(
    tmp_path: Path,
) -> None:
    subject = Subject.of(FAMILIES["internvl-qwen3"], tmp_path)
    shown = [user("What?", picture(1), picture(2))]
    wants_json: Any = {"response_format": {"type": "json_object"}}
    for reasoning, options, expected in (
        ("answer", {}, 0), ("answer", wants_json, 2), ("thought", {}, 2), ("off", {}, 2),
    ):  # fmt: skip
        with closing(subject.steered(1, CLOSED, reasoning=reasoning, force=True)) as llama:
            llama.create_chat_completion(shown, max_tokens=1, **options)
            seen = llama.steerer.turns.reply.isolated.seen
            assert len(seen or ()) == expected, (reasoning, options)


def test_a_chat_says_why_by_the_threshold_of_the_picture_beside_a_film(demo: SteeredLlama) -> None:
    g = demo.policies[0].geometry
    (asked,) = cell("picture, harmful how-to", 1)
    messages = [film("Look.", picture(3), picture(4)), user(asked.prompt, *asked.pictures)]
    steering = say(demo, messages)
    assert (steering.picture, steering.modality) == (2, "image")
    assert demo.context.modality == "video"
    opens = g.thresholds["image"] + further(2) * g.spreads["image"]
    console = Console(record=True, width=120)
    console.print(why(Turn(messages, seed=0, steering=steering), g))
    said = console.export_text()
    assert "number 2 of what was shown, alone" in said
    assert f"opens at t = {opens:.2f}" in said
