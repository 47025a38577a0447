"""What a context holds is continued, whatever its memory can do; and where its memory cannot be
rewound, a reply is still what a fresh context gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import asking
import llama_cpp
import models
import numpy as np
import numpy.typing as npt
import pytest
from asking import state
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp.llama_chat_format import MTMDChatHandler
from models import CLOSED, OPEN, OPTIONS, Messages, assistant, picture, steer, user
from tiny import FAMILIES

from mars_gguf.runtime import memory
from mars_gguf.runtime.chunks import Chunk
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.mtmd import Projector
from mars_gguf.runtime.reading import logits as logits_of

Logits = npt.NDArray[np.float32]
hybrids = pytest.mark.parametrize("family", ["qwen35", "lfm2"])
WINDOWS: dict[str, Any] = {"n_ctx": 1024, "n_batch": 64, "n_ubatch": 64, "swa_full": False}
QUESTION = "What is on it?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reused")


@pytest.fixture
def files(family: str, folder: Path) -> str:
    """The model of a family, its mmproj beside it."""
    if not (folder / family).exists():
        FAMILIES[family].write(folder / family)
    return str(folder / family / "model.gguf")


class Watched(SteeredLlama):
    """Notes how many tokens llama.cpp is given at a time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.evaluated: list[int] = []
        super().__init__(*args, **kwargs)
        decode = self._ctx.decode

        def note(batch: Any) -> None:
            self.evaluated.append(batch.n_tokens())
            decode(batch)

        self._ctx.decode = note  # type: ignore[method-assign]


def load(path: str, opens: float = CLOSED, **options: Any) -> Watched:
    given = models.vector(path, 1, opens)
    if given.model.reasoning:  # a thought would not end here
        given = replace(given, model=replace(given.model, reasoning="off"))
    fits = {"n_ctx": 2048, "keep_turns": True, "mmproj": models.mmproj_of(path)}
    return Watched(path, vector=given, **OPTIONS | fits | options)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Chunk]:
    """The pictures and slices that were decoded."""
    seen: list[Chunk] = []
    original = Projector.decode

    def note(self: Projector, context: Any, chunk: Chunk, *rest: Any) -> int:
        seen.append(chunk)
        return original(self, context, chunk, *rest)

    monkeypatch.setattr(Projector, "decode", note)
    return seen


def say(llama: llama_cpp.Llama, messages: Messages, reply: str = "") -> Logits:
    """The logits of a reply, which is ``reply`` if one is given."""
    forced = models.tokens_of(llama, reply)
    return asking.chat(llama, messages, len(forced) or 3, forced)[0]


def complete(llama: llama_cpp.Llama, prompt: Sequence[int], reply: Sequence[int] = ()) -> Logits:
    return asking.complete(llama, prompt, len(reply) or 3, reply)


def near(a: Logits, b: Logits) -> bool:
    """Equal up to rounding; what is wrong is farther off by far."""
    return bool(np.abs(a - b).max() < 2e-3 * np.abs(b).max())


def shown(llama: SteeredLlama, messages: Messages) -> int:
    return sum(not chunk.is_text for chunk in llama.chunks(messages))


def length(llama: SteeredLlama, messages: Messages) -> int:
    """Positions that a prompt takes."""
    return sum(chunk.n_positions for chunk in llama.chunks(messages))


def three_turns(family: str, reply: str) -> list[Messages]:
    a, b = picture(1, FAMILIES[family].picture_side), picture(2, FAMILIES[family].large_side)
    first = [user(QUESTION, a)]
    second = [*first, assistant(reply), user("And here?", b)]
    return [first, second, [*second, assistant(reply), user("Why is that?")]]


@hybrids
def test_a_steered_turn_of_a_hybrid_leaves_nothing_in_the_next(
    family: str, files: str, decoded: list[Chunk]
) -> None:
    first, second, _ = three_turns(family, "Tea and a hat.")
    steered, never = load(files, OPEN), load(files)
    say(steered, first, "Tea and a hat.")
    assert steered.last_steering is not None and steered.last_steering.alpha > 0
    say(never, first)
    never.context.rewind(length(never, first) - 1)
    steer(steered, never.vectors["mars"])
    decoded.clear()
    assert np.array_equal(say(steered, second), say(never, second))
    assert {c.identity for c in decoded}.isdisjoint(
        c.identity for c in never.chunks(first) if not c.is_text
    )
    assert state(steered) == state(never)
    steered.close()
    never.close()


@hybrids
def test_however_often_a_hybrid_is_steered_each_turn_costs_no_more_than_two(
    family: str, files: str, decoded: list[Chunk]
) -> None:
    llama, fresh = load(files, OPEN), load(files, OPEN, keep_turns=False)
    messages = [user(QUESTION, picture(1, FAMILIES[family].picture_side))]
    lengths = []
    for turn in range(5):
        llama.evaluated.clear()
        decoded.clear()
        logits = say(llama, messages, "Tea and a hat.")
        assert len(decoded) == (turn == 0)
        lengths.append(length(llama, messages))
        if turn > 1:
            assert sum(llama.evaluated) <= lengths[-1] - lengths[-3] + len("Tea and a hat.")
        fresh.context.rewind(0)
        expected = say(fresh, messages, "Tea and a hat.")
        a, b = llama.last_steering, fresh.last_steering
        assert a is not None and b is not None and a.alpha > 0
        assert a.alpha == pytest.approx(b.alpha, rel=1e-3)
        assert near(logits, expected)
        messages = [*messages, assistant("Tea and a hat."), user(f"And what else? {turn}")]
    llama.close()
    fresh.close()


def test_snapshots_are_few_and_take_no_more_memory_than_said(
    hybrid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = load(hybrid, mmproj=None)
    words = models.tokens_of(llama, "How is it?")

    def kept() -> list[int]:
        return llama.context.memory.kept_positions

    for turn in range(1, 8):
        complete(llama, words * turn)
    assert 1 < len(kept()) <= memory.MAX_SNAPSHOTS
    assert kept() == sorted(kept()) and kept()[-1] <= llama.n_tokens
    monkeypatch.setattr(memory, "MAX_BYTES", llama.context.memory.kept_bytes // len(kept()))
    complete(llama, words * 9)
    assert len(kept()) == 1
    llama.context.rewind(kept()[0] - 1)
    assert (llama.n_tokens, kept()) == (0, [])
    llama.close()


def test_a_restored_state_is_not_continued_from_snapshots_of_what_was_there(hybrid: str) -> None:
    llama, fresh = load(hybrid, mmproj=None), load(hybrid, mmproj=None)
    one, other, more = tokens(90, 1), tokens(90, 2), tokens(20, 3)
    complete(llama, one)
    state = llama.save_state()
    for end in (30, 60, 90):
        complete(llama, other[:end])
    llama.load_state(state)
    prompt = [*one[:80], *more]
    assert near(complete(llama, prompt), complete(fresh, prompt))
    llama.close()
    fresh.close()


# Sliding windows that let go ----------------------------------------------------------------------


def windowed(path: str, opens: float = CLOSED, **options: Any) -> Watched:
    options = WINDOWS | {"keep_turns": False} | options
    return load(path, opens, mmproj=None, **options)


def tokens(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(300, 1000, n).tolist()  # type: ignore[no-any-return]


TEXT, REPLY = tokens(300, 1), tokens(70, 2)
CHANGES: dict[str, Callable[[list[int]], list[int]]] = {
    "continued": lambda said: [*said, *tokens(100, 3)],
    "after the beginning of the reply": lambda said: [*said[:305], *tokens(100, 4)],
    "far back": lambda said: [*said[:100], *tokens(50, 5)],
    "the same": lambda said: said[:300],
    "a beginning": lambda said: said[:120],
}


@pytest.mark.parametrize("family", ["gemma3"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("keep_turns", [False, True])
@pytest.mark.parametrize("opens", [CLOSED, OPEN])
def test_windows_that_let_go_change_no_reply(
    files: str, change: Callable[[list[int]], list[int]], keep_turns: bool, opens: float
) -> None:
    llama, fresh = (windowed(files, opens, keep_turns=keep_turns) for _ in range(2))
    said = [*TEXT, *REPLY[:-1]]  # the last is sampled and not evaluated
    for _ in range(2):
        complete(llama, TEXT, REPLY)
        prompt = change(said)
        fresh.context.rewind(0)
        assert near(complete(llama, prompt), complete(fresh, prompt))
    llama.close()
    fresh.close()


@pytest.mark.parametrize("family", ["gemma3"])
@pytest.mark.parametrize("opens", [CLOSED, OPEN])
def test_windows_of_full_size_that_were_restored_change_no_reply(files: str, opens: float) -> None:
    """Cells that were restored are used again before free ones."""
    llama, fresh = (windowed(files, opens, swa_full=True) for _ in range(2))
    asleep = replace(llama.policies[0], name="asleep", block=2, gate="shut")
    # Of two policies the first is not known to push before all of the prompt is evaluated.
    with llama.using(*llama.policies, asleep):
        complete(llama, TEXT, REPLY)
        llama.load_state(llama.save_state())
        said = [*TEXT, *REPLY[:-1]]
        for prompt in ([*said, *tokens(150, 3)], [*said[:100], *tokens(50, 5)]):
            fresh.context.rewind(0)
            assert near(complete(llama, prompt), complete(fresh, prompt))
    llama.close()
    fresh.close()


@pytest.mark.parametrize("family", ["gemma3"])
def test_a_handler_of_llama_cpp_python_is_steered_in_windows_that_let_go(
    family: str, files: str
) -> None:
    """It evaluates the text before it is known to be the end of the prompt: that is taken back."""
    messages = [user("Where do people keep tea, and why? " * 30, picture(1))]
    handler = MTMDChatHandler(models.mmproj_of(files), verbose=False)
    own = load(files, OPEN, keep_turns=False, **WINDOWS | {"n_batch": 128, "n_ubatch": 128})
    plainly = load(
        files, OPEN, keep_turns=False, mmproj=None, chat_handler=handler,
        **WINDOWS | {"n_batch": 128, "n_ubatch": 128},
    )  # fmt: skip
    logits = say(own, messages)
    assert own.n_tokens > 256 + 64
    assert near(say(plainly, messages), logits)
    own.close()
    plainly.close()


# How far it can be taken back --------------------------------------------------------------------


class Toy(memory.Memory):
    """A memory that holds positions ``first_held`` to ``n_held`` - 1; snapshots are of a byte."""

    n_held: Any = 0
    first_held: Any = 0
    rewinds: Any = True
    rewinds_far: Any = False
    window: Any = 0

    def snapshot(self, *, whole: bool = False) -> Any:
        return b"."


@settings(deadline=None)
@given(
    n_held=st.integers(0, 30), first=st.integers(0, 30), window=st.integers(1, 12),
    kept=st.sets(st.integers(1, 30), max_size=memory.MAX_SNAPSHOTS),
    in_order=st.booleans(), rewinds=st.booleans(), position=st.integers(0, 30),
)  # fmt: skip
def test_the_nearest_position_is_the_last_one_of_which_all_that_is_seen_is_held(
    n_held: int, first: int, window: int, kept: set[int], in_order: bool, rewinds: bool,
    position: int,
) -> None:  # fmt: skip
    toy = Toy(Any)  # type: ignore[arg-type]
    toy.n_held, toy.first_held, toy.window, toy.rewinds = n_held, first, window, rewinds
    for at in sorted(kept):
        toy.keep(at)
    if not in_order:
        toy._in_order = False
    held = set(range(first, n_held))
    # The first token of what follows sees a window's length of those before it.
    seen = set(range(max(0, position - window), position))
    if position >= n_held or (rewinds and in_order and seen <= held):
        assert toy.nearest(position) == memory.Checkpoint(position)
    else:
        at = max((at for at in kept if at <= position), default=0)
        assert toy.nearest(position) == memory.Checkpoint(at, b"." if at else None)


def test_what_can_be_rewound_ends_anywhere_without_a_snapshot() -> None:
    llama = load(models.DEMO, mmproj=None)
    said = tokens(40, 1)
    llama.eval(said)
    llama.context.keep()
    assert llama.context.memory.kept_positions == []
    for position in (33, 20, 1, 0):
        assert llama.context.rewind(position) == position == llama.context.memory.n_held
    with pytest.raises(ValueError, match="position 1, expected 0 to 0"):
        llama.context.rewind(1)
    llama.close()


@pytest.mark.parametrize("model", ["hybrid", "recurrent"], indirect=True)
def test_what_cannot_be_rewound_goes_on_from_the_last_snapshot_before(model: str) -> None:
    llama, fresh = (load(model, mmproj=None) for _ in range(2))
    said = tokens(40, 1)
    for start in range(0, 40, 10):
        llama.eval(said[start : start + 10])
        llama.context.keep()
    for asked, expected in ((39, 30), (30, 30), (29, 20), (12, 10), (9, 0)):
        assert llama.context.rewind(asked) == llama.n_tokens == expected
        assert llama.context.memory.n_held == expected
        assert max(llama.context.memory.kept_positions, default=0) <= expected
        fresh.context.rewind(0)
        for start in range(0, 40, 10):
            fresh.eval(said[start : start + 10])
            if start >= expected:
                llama.eval(said[start : start + 10])
        assert np.array_equal(logits_of(llama), logits_of(fresh))
    llama.close()
    fresh.close()
