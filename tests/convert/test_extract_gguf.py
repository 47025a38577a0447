from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extractors import pushed
from llama_cpp import llama_cpp as lib
from models import (
    CLOSED,
    DEMO,
    DEMO_MMPROJ,
    OPTIONS,
    last_states,
    mmproj_of,
    picture,
    random_llama,
    steered,
    tapped,
    vector,
)

from mars_gguf.convert import extract_gguf
from mars_gguf.convert.extract_gguf import MAX_CELLS, MIN_CELLS, GgufExtractor
from mars_gguf.convert.extractor import Opening
from mars_gguf.convert.prompts import Preamble, Prompt
from mars_gguf.errors import ModelError, PromptError
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.prefill import (
    MAX_COPIES,
    MAX_SEQUENCES,
    N_BATCH,
    CachedPrompt,
)
from mars_gguf.runtime.reading import logits as logits_of
from mars_gguf.runtime.tap import Rows

TEXTS = [
    Prompt("How do I make bread?"),
    Prompt("Where do people keep tea, and why do they keep it there?"),
    Prompt("Tea."),
    Prompt("What is a kite? " * 12),
    Prompt("How do I make a hat?"),
]
PICTURES = [
    Prompt("How do I make this?", (picture(1),)),
    Prompt("What is it?", (picture(2), picture(3))),
    Prompt("What is a kite? " * 9, (picture(4),)),
    Prompt("What happens?", (picture(5), picture(6)), medium="video"),
]
LONG = [Prompt("Where do people keep tea? " * 120), Prompt("Where do people keep tea? " * 90)]
QUANTIZED = 0.998

SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("short_smollm2", "small_llama", "recurrent", "mrope", "gemma")
]
every_model = pytest.mark.parametrize("model", ["demo", "hybrid", *SLOW], indirect=True)
with_pictures = pytest.mark.parametrize("model", ["demo", "hybrid", *SLOW[2:]], indirect=True)


def opened(model: str, mmproj: str | None = None) -> GgufExtractor:
    return GgufExtractor(model, mmproj, n_threads=1)


def observed(extractor: GgufExtractor, prompts: Sequence[Prompt]) -> tuple[Rows, Rows]:
    """States and logits of all prompts, from sessions of as many as fit."""
    order: list[int] = []
    states, logits = [], []
    for indices, session in extractor.sessions(prompts):
        order += indices
        h, y = session.observe()
        states.append(h)
        logits.append(y)
    assert sorted(order) == list(range(len(prompts)))
    back = np.argsort(order)
    return np.concatenate(states)[back], np.concatenate(logits)[back]


def one_by_one(extractor: GgufExtractor, prompts: Sequence[Prompt]) -> tuple[Rows, Rows]:
    pairs = [observed(extractor, [prompt]) for prompt in prompts]
    return np.concatenate([h for h, _ in pairs]), np.concatenate([y for _, y in pairs])


def cosines(a: Rows, b: Rows) -> Rows:
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(-1) / norms)


def ask(llama: SteeredLlama, prompt: Prompt) -> None:
    llama.create_chat_completion(prompt.messages, max_tokens=1, temperature=0.0)  # type: ignore


@every_model
def test_prompts_become_the_tokens_that_the_runtime_evaluates(model: str) -> None:
    extractor, llama = opened(model), steered(model, vector(model, opens=CLOSED))
    for prompt in TEXTS:
        ask(llama, prompt)
        ids = llama.input_ids[: llama.n_tokens].tolist()
        assert extractor.render(prompt).encode() == llama.detokenize(ids, special=True)
        for _, session in extractor.sessions([prompt]):
            (sequence,) = session.prompts
            assert [*sum(sequence.head, ()), *sequence.tail] == ids


@with_pictures
def test_prompts_with_pictures_become_what_the_runtime_evaluates(model: str) -> None:
    extractor = opened(model, mmproj_of(model))
    llama = steered(model, vector(model, opens=CLOSED), mmproj=mmproj_of(model))
    for prompt in [*PICTURES, *TEXTS]:
        ask(llama, prompt)
        ids = llama.input_ids[: llama.n_tokens]
        for _, session in extractor.sessions([prompt]):
            (sequence,) = session.prompts
            runs = [*(run.tokens for run in sequence.head), sequence.tail]
            assert list(chain.from_iterable(runs)) == ids[ids >= 0].tolist()
            assert sequence.n_past == llama.n_tokens - 1
        assert prompt.modality == llama.context.modality


@every_model
def test_states_do_not_depend_on_which_prompts_share_a_session(model: str) -> None:
    extractor = opened(model)
    states, logits = observed(extractor, TEXTS)
    alone, logits_alone = one_by_one(extractor, TEXTS)
    assert states.shape == (len(TEXTS), extractor.n_layer, extractor.n_embd)
    assert cosines(states, alone).min() >= QUANTIZED
    assert cosines(logits, logits_alone).min() >= QUANTIZED
    # Far closer to its own than to any other prompt's.
    last = states[:, -2]
    for i in range(len(TEXTS)):
        distances = np.linalg.norm(alone[:, -2] - last[i], axis=1)
        others = np.delete(distances, i)
        assert distances[i] < 0.2 * others.min()


@every_model
def test_states_are_those_that_the_runtime_reads(model: str) -> None:
    extractor, llama = opened(model), tapped(model, **OPTIONS)
    states, logits = observed(extractor, TEXTS)
    for i, prompt in enumerate(TEXTS):
        tokens = llama.tokenize(extractor.render(prompt).encode(), add_bos=False, special=True)
        expected = last_states(llama, tokens)
        for layer in range(extractor.n_layer):
            assert cosines(states[i, layer], expected[layer]) >= QUANTIZED
        assert cosines(logits[i], logits_of(llama)) >= QUANTIZED


@with_pictures
def test_states_of_prompts_with_pictures_are_those_that_the_runtime_reads(model: str) -> None:
    extractor = opened(model, mmproj_of(model))
    prompts = [PICTURES[0], TEXTS[0], PICTURES[1], PICTURES[2], TEXTS[2]]
    states, logits = observed(extractor, prompts)
    alone, _ = one_by_one(extractor, prompts)
    assert cosines(states, alone).min() >= QUANTIZED
    for layer in (1, extractor.n_layer - 1):
        given = vector(model, layer, CLOSED)
        llama = steered(model, given, mmproj=mmproj_of(model))
        for i, prompt in enumerate(prompts):
            ask(llama, prompt)
            assert llama.last_steering is not None
            g, modality = given.geometry, prompt.modality
            t = float((states[i, layer] - g.shifts[modality] - g.safe) @ g.readout)
            assert t == pytest.approx(llama.last_steering.t, abs=0.05)
            assert cosines(logits[i], logits_of(llama)) >= QUANTIZED


@every_model
def test_steering_by_nothing_changes_nothing_and_rows_do_not_mix(model: str) -> None:
    extractor = opened(model)
    for _, session in extractor.sessions(TEXTS):
        states, logits = session.observe()
        zeros = np.zeros((len(TEXTS), extractor.n_embd), np.float32)
        for layer in (1, extractor.n_layer - 1):
            assert np.array_equal(pushed(session, layer, zeros), logits)
            one = zeros.copy()
            one[2] = 3 * states[0, layer]
            changed = pushed(session, layer, one)
            others = [0, 1, 3, 4]
            assert np.array_equal(changed[others], logits[others])
            assert not np.array_equal(changed[2], logits[2])


@every_model
def test_steering_here_is_steering_at_run_time(model: str) -> None:
    for layer in (1, -1):
        given = vector(model, layer, limit=4.0)
        llama, extractor = steered(model, given), opened(model)
        direction = given.geometry.direction / given.geometry.distance
        alphas, expected = [], []
        for prompt in TEXTS:
            llama.reset()
            ask(llama, prompt)
            assert llama.last_steering is not None
            alphas.append(llama.last_steering.alpha)
            expected.append(logits_of(llama))
        additions = (np.array(alphas)[:, None] * direction).astype(np.float32)
        for indices, session in extractor.sessions(TEXTS):
            logits, run_time = pushed(session, given.layer, additions[indices]), np.stack(expected)
            assert cosines(logits, run_time[indices]).min() >= QUANTIZED
            for ours, theirs in zip(logits, run_time[indices], strict=True):
                # The same first token, but for a tie within rounding.
                assert theirs[ours.argmax()] > theirs.max() - 0.5


@pytest.mark.parametrize("model", ["demo", "hybrid", "recurrent"], indirect=True)
def test_prompts_longer_than_a_batch_are_read_at_their_last_token(model: str) -> None:
    extractor = opened(model)
    states, logits = observed(extractor, [*LONG, TEXTS[0]])
    llama = tapped(model, **OPTIONS | {"n_ctx": 4096})
    for i, prompt in enumerate(LONG):
        tokens = llama.tokenize(extractor.render(prompt).encode(), add_bos=False, special=True)
        assert len(tokens) > N_BATCH
        expected = last_states(llama, tokens)
        for layer in range(extractor.n_layer):
            assert cosines(states[i, layer], expected[layer]) >= QUANTIZED
        assert cosines(logits[i], logits_of(llama)) >= QUANTIZED


def test_more_prompts_than_fit_go_into_several_sessions() -> None:
    extractor = opened(DEMO)
    short = [Prompt(f"{n}") for n in range(MAX_SEQUENCES + 3)]
    assert [len(indices) for indices, _ in extractor.sessions(short)] == [MAX_SEQUENCES, 3]
    long = [Prompt(f"What are {n} kites? " * (n + 1)) for n in range(12)]
    cells = []
    for part, _ in extractor.sessions(long):
        tails = [extractor.cached(long[i]).tail for i in part]
        prefixes = {tail[:end] for tail in tails for end in range(1, len(tail))}
        cells.append(len(prefixes) + 2 * len(part))  # the last token, and its copy
    assert 1 < len(cells) < 12
    assert max(cells) <= max(MIN_CELLS, MAX_CELLS * extractor.n_embd)
    assert cosines(observed(extractor, long)[0], one_by_one(extractor, long)[0]).min() >= QUANTIZED


@pytest.mark.parametrize("model", ["demo", "short_smollm2"], indirect=True)
def test_what_prompts_begin_with_is_decoded_once_for_all_sessions(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = opened(model)
    asked = ["How do I bake", "What is", "How do I build"]
    prompts = [Prompt(f"{asked[n % 3]} {'a large ' * 9}kite, {n}?") for n in range(35)]
    expected, logits = one_by_one(extractor, prompts)
    assert len(list(extractor.sessions(prompts))) > 1
    texts = [tuple(extractor.cached(prompt).tail) for prompt in prompts]
    prefixes = {tokens[:end] for tokens in texts for end in range(1, len(tokens))}
    tokens = decoded(monkeypatch, extractor)
    for _ in range(2):  # the second time after a session that is begun with, too
        states, after = observed(extractor, prompts)
        assert cosines(states, expected).min() >= QUANTIZED
        assert cosines(after, logits).min() >= QUANTIZED
        assert 0 < sum(tokens) <= len(prefixes) + len(prompts)
        tokens.clear()


@pytest.mark.parametrize("model", ["demo", "mrope", "gemma"], indirect=True)
def test_contexts_and_pictures_that_prompts_begin_with_are_decoded_once_for_all_sessions(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = opened(model, mmproj_of(model))
    before = Preamble("persona", ({"role": "system", "content": "You keep tea and kites. " * 3},))
    shown = [(), (picture(1),), (picture(2), picture(3)), (picture(2), picture(4))]
    prompts = [
        Prompt(f"Where do people keep {text} kites?", images, context=context)
        for context in (Preamble(), before)
        for images in shown
        for text in ["many", "more", "no", "their own", "lost " * 9]
    ]
    expected, logits = one_by_one(extractor, prompts)
    extractor.forget()
    cells: dict[tuple[Any, ...], int] = {}  # by what a prompt begins with
    for prompt in prompts:
        begun: tuple[Any, ...] = ()
        for run in extractor.cached(prompt).runs:
            for unit in run.tokens or [run.identity]:
                begun = *begun, unit
                cells[begun] = 1 if run.is_text else run.n_tokens
    tokens = decoded(monkeypatch, extractor)
    states, after = observed(extractor, prompts)
    # But for what ends a group as text, though not as tokens, unlike what the next one begins with.
    assert sum(cells.values()) <= sum(tokens) - len(prompts) <= 1.01 * sum(cells.values())
    assert cosines(states, expected).min() >= QUANTIZED
    assert cosines(after, logits).min() >= QUANTIZED


def decoded(monkeypatch: pytest.MonkeyPatch, extractor: GgufExtractor) -> list[int]:
    """The numbers of tokens of all batches from now on, and of pictures decoded alone."""
    sizes: list[int] = []
    decode, decode_picture = extractor.decoder.decode, extractor.decoder.picture

    def counting(batch: Any) -> None:
        sizes.append(batch.n_tokens)
        decode(batch)

    def counting_picture(cached: Any, chunk: Any) -> int:
        sizes.append(chunk.n_tokens)
        return decode_picture(cached, chunk)

    monkeypatch.setattr(extractor.decoder, "decode", counting)
    monkeypatch.setattr(extractor.decoder, "picture", counting_picture)
    return sizes


# Replies -----------------------------------------------------------------------------------------


def replies_of(llama: Any, prompts: Sequence[Prompt], n_tokens: int) -> list[str]:
    """What the runtime says, greedily."""
    found = []
    for prompt in prompts:
        llama.reset()
        reply = llama.create_chat_completion(
            prompt.messages, max_tokens=n_tokens, temperature=0.0, repeat_penalty=1.0
        )
        found.append(reply["choices"][0]["message"]["content"])
    return found


@pytest.mark.parametrize("model", ["demo", "short_smollm2", "hybrid", "recurrent"], indirect=True)
def test_replies_are_those_of_the_runtime_but_for_ties_and_leave_the_prompts_as_they_are(
    model: str,
) -> None:
    """Every token is the likeliest of llama-cpp-python's, within rounding, after those before."""
    extractor, llama = opened(model), tapped(model, **OPTIONS)
    for indices, session in extractor.sessions(TEXTS):
        states, _ = session.observe()
        found = extractor.decoder.replies(session.prompts, 12, nullcontext())
        for i, tokens in zip(indices, found, strict=True):
            asked = extractor.render(TEXTS[i]).encode()
            llama.reset()
            llama._ctx.kv_cache_clear()
            llama.eval(llama.tokenize(asked, add_bos=False, special=True))
            for token in tokens:
                row = logits_of(llama)
                assert row[token] > row.max() - 0.5
                llama.eval([token])
        text = [extractor.llama.detokenize(tokens).decode(errors="replace") for tokens in found]
        replies = [Opening(t[0], said) for t, said in zip(found, text, strict=True)]
        assert session.replies(12) == replies
        assert np.array_equal(session.observe()[0], states)


@pytest.mark.parametrize("model", ["demo", "mrope", "gemma"], indirect=True)
def test_replies_to_pictures_are_those_of_the_runtime(model: str) -> None:
    extractor = opened(model, mmproj_of(model))
    llama = steered(model, vector(model, opens=CLOSED), mmproj=mmproj_of(model))
    for indices, session in extractor.sessions(PICTURES):
        expected = replies_of(llama, [PICTURES[i] for i in indices], 6)
        for reply, other in zip(session.replies(6), expected, strict=True):
            assert reply.text.startswith(other)


@pytest.mark.parametrize("model", ["demo", "hybrid"], indirect=True)
def test_steered_replies_are_those_of_the_runtime_push_by_push(model: str) -> None:
    extractor = opened(model)
    given = [vector(model, layer, limit=limit) for layer, limit in ((1, 3.0), (-1, 6.0), (1, 0.1))]
    llamas = [steered(model, one) for one in given]
    for indices, session in extractor.sessions(TEXTS):
        prompts = [TEXTS[i] for i in indices]
        pushes, expected = [], []
        for one, llama in zip(given, llamas, strict=True):
            rows = []
            for prompt in prompts:
                expected += replies_of(llama, [prompt], 8)
                assert llama.last_steering is not None
                rows.append(llama.last_steering.alpha * one.geometry.unit)
            pushes.append((one.layer, np.array(rows, np.float32)))
        found = [r.text for replies in session.steered_replies(pushes, 8) for r in replies]
        assert all(a.startswith(b) for a, b in zip(found, expected, strict=True))


@every_model
def test_several_pushes_at_once_are_what_they_are_one_after_the_other(model: str) -> None:
    extractor = opened(model)
    for _, session in extractor.sessions(TEXTS):
        states, _ = session.observe()
        last = extractor.n_layer - 1
        pushes = [(k, 0.3 * i * states[:, k]) for i, k in enumerate([1, last] * 8)]
        together = list(session.steered_replies(pushes, 1))
        assert len(together) == len(pushes) > MAX_COPIES // len(TEXTS)
        for (layer, additions), replies in zip(pushes, together, strict=True):
            logits = pushed(session, layer, additions)
            for reply, row in zip(replies, logits, strict=True):
                assert row[reply.token] > row.max() - 0.5  # but for a tie within rounding


@pytest.mark.parametrize("model", ["demo", "mrope", "gemma"], indirect=True)
def test_replies_go_one_after_the_other_where_the_context_is_nearly_full(model: str) -> None:
    extractor = GgufExtractor(model, mmproj_of(model), n_ctx=512, n_threads=1)
    room = extractor.n_cells - 16
    fitting = [p for n in range(600) if extractor.length(p := Prompt("tea " * n, SHOWN)) <= room]
    for _, session in extractor.sessions([max(fitting, key=extractor.length)]):
        states, logits = session.observe()
        (reply,) = session.replies(16)
        assert reply.token == logits.argmax()
        for again in session.steered_replies([(2, 0 * states[:, 2])] * 5, 16):
            assert again == [reply]


def test_what_prompts_begin_with_is_in_the_context_once_and_leaves_room_for_replies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extract_gguf, "MAX_CELLS", 1000.0)  # as of a large model
    extractor = GgufExtractor(DEMO, n_ctx=512, n_threads=1)
    long = Preamble("long", ({"role": "system", "content": "tea " * 100},))
    asked = [Prompt(f"{n} kites", context=long) for n in range(8)]
    assert sum(map(extractor.length, asked)) > extractor.n_cells
    at_once: list[int] = []
    replies = extractor.decoder.replies

    def counted(some: Sequence[CachedPrompt], *rest: Any) -> list[list[int]]:
        at_once.append(len(some))
        return replies(some, *rest)

    monkeypatch.setattr(extractor.decoder, "replies", counted)
    for _, session in extractor.sessions(asked):
        session.replies(16)
    assert at_once == [8]


SHOWN = (picture(1),)


def test_a_prompt_that_leaves_no_room_for_a_reply_is_refused_with_what_to_do() -> None:
    extractor = GgufExtractor(DEMO, n_ctx=512, n_threads=1)
    fitting = [p for n in range(600) if extractor.length(p := Prompt("tea " * n)) < 511]
    longest = max(fitting, key=extractor.length)
    with pytest.raises(ModelError, match="Give n_ctx"):
        list(next(extractor.sessions([longest]))[1].replies(16))


# Contexts ----------------------------------------------------------------------------------------

WRITES = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
RAISES = WRITES.replace(
    "<{{", "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}<{{"
)
DROPS = WRITES.replace("messages", "messages if m.role == 'user'")
SYSTEM = Preamble("strict", ({"role": "system", "content": "Be brief."},))
TURNS = Preamble(
    "turns", ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Oh"})
)


@pytest.mark.parametrize(
    ("template", "taken"),
    [(WRITES, (True, True)), (RAISES, (False, True)), (DROPS, (False, False))],
    ids=["writes", "raises", "drops"],
)
def test_a_context_is_taken_if_the_template_writes_all_that_stands_in_it(
    template: str, taken: tuple[bool, bool], tmp_path: Path
) -> None:
    extractor = opened(random_llama(tmp_path / "model.gguf", template=template))
    assert (extractor.takes(SYSTEM), extractor.takes(TURNS)) == taken
    assert extractor.takes(Preamble())


@pytest.mark.parametrize("model", ["short_smollm2", "small_llama"], indirect=True)
def test_after_a_context_states_are_those_that_the_runtime_reads(model: str) -> None:
    extractor, llama = opened(model), steered(model, vector(model, opens=CLOSED))
    contexts = [c for c in (SYSTEM, TURNS) if extractor.takes(c)]
    prompts = [replace(p, context=c) for p in TEXTS for c in (Preamble(), *contexts)]
    states, _ = observed(extractor, prompts)
    given = llama.vectors["mars"]
    g, layer = given.geometry, given.layer
    assert len(contexts) == 2
    for prompt, state in zip(prompts, states, strict=True):
        ask(llama, prompt)
        assert llama.last_steering is not None
        t = float((state[layer] - g.safe) @ g.readout)
        assert t == pytest.approx(llama.last_steering.t, abs=0.05)


# Limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_ctx", [1, 100, 300, 512, 600])
def test_small_contexts_hold_batches_as_large_as_themselves(n_ctx: int) -> None:
    """llama.cpp rounds n_ctx up; more tokens in a batch than n_batch would abort the process."""
    extractor = GgufExtractor(DEMO, n_ctx=n_ctx, n_threads=1)
    assert lib.llama_n_batch(extractor.llama.ctx) >= min(N_BATCH, extractor.n_cells)
    prompts = [Prompt(f"Where do people keep {n} pots of tea?") for n in range(40)]
    assert np.isfinite(observed(extractor, prompts)[0]).all()
    extractor.close()


def test_what_cannot_be_measured_is_refused(
    small_llama: str, gemma: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="tokens of context, found 512. Give n_ctx .* 1024"):
        next(GgufExtractor(DEMO, n_ctx=512, n_threads=1).sessions([LONG[0]]))
    with pytest.raises(PromptError, match="without mmproj"):
        next(opened(DEMO).sessions(PICTURES))
    with pytest.raises(ModelError, match="belongs to this model"):
        opened(small_llama, DEMO_MMPROJ)
    extractor = opened(gemma, mmproj_of(gemma))
    monkeypatch.setattr(lib, "llama_n_ubatch", lambda _context: 8)
    with pytest.raises(ModelError, match="expected 16 or more"):
        next(extractor.sessions(PICTURES))


@pytest.mark.parametrize("model", ["demo", "hybrid", "mrope", "gemma"], indirect=True)
def test_a_session_given_up_leaves_nothing_behind(model: str) -> None:
    extractor = opened(model, mmproj_of(model))
    expected, _ = observed(extractor, PICTURES)
    sessions: Iterator[object] = extractor.sessions([*PICTURES, *TEXTS])
    next(sessions)
    del sessions
    extractor.forget()
    assert np.array_equal(observed(extractor, PICTURES)[0], expected)

    wrong = np.zeros((1, 3), np.float32)
    extractor.forget()
    for indices, session in extractor.sessions(PICTURES):
        with pytest.raises((RuntimeError, ValueError)):
            pushed(session, 1, wrong)
        with pytest.raises((RuntimeError, ValueError)):
            list(session.steered_replies([(1, wrong)], 3))
        assert np.array_equal(session.observe()[0], expected[indices])
