"""``python -m tests.soak [--turns 10000] [--seed N] [--check-every 100]``: a long life of one
process.

Turns of many kinds, drawn from a seed, are played on the demo model. After a warm-up, memory must
stay flat and no descriptor or thread be left over; and now and then a turn must end as it does in a
process that was started for it alone. Exits with 1 if one of it is not so.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mars_gguf import SteeredLlama, demo_model
from mars_gguf.demo_model import requests
from mars_gguf.errors import MarsError, SteeringError
from mars_gguf.media.images import user_message
from mars_gguf.runtime.encoded import MAX_EMBEDDINGS

Outcome = dict[str, list[Any]]  # texts, and t at their first tokens
MOST_GROWTH = 5.0  # MB after the warm-up, by a line through all samples
WARM_UP = 0.5  # of the turns: by then of a long life the caches of encoded pictures are full
SAMPLES = 200
ROUNDING = 0.01  # of t, where a prompt is continued and so decoded in other batches


def load(*, keep_turns: bool) -> SteeredLlama:
    return SteeredLlama(
        str(demo_model.TEXT_MODEL),
        vector=demo_model.VECTOR,
        mmproj=str(demo_model.MMPROJ),
        keep_turns=keep_turns,
        n_ctx=demo_model.CONTEXT,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
    )


@dataclass
class Process:
    """One model that begins anew with every request, one that keeps turns, and streams that were
    given up and not yet collected."""

    llama: SteeredLlama = field(default_factory=lambda: load(keep_turns=False))
    keeping: SteeredLlama = field(default_factory=lambda: load(keep_turns=True))
    given_up: deque[Any] = field(default_factory=lambda: deque(maxlen=3))

    def play(self, seed: int, number: int) -> tuple[str, Outcome]:
        """The kind of a turn, and how it ended."""
        rng = random.Random(f"{seed}|{number}")
        kind = rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
        return kind, KINDS[kind][0](self, rng)


def message(rng: random.Random, *modalities: str) -> dict[str, Any]:
    """A request of the model's world; by default of any modality."""
    modality = rng.choice(modalities or ("text", "image", "pictures", "video"))
    kind = rng.choice(("harmful", "harmless", "borderline"))
    form = {"pictures": "video"}.get(modality, modality)
    prompt, pictures, _ = requests.example(form, kind, rng.randrange(10_000), "soak")
    return user_message(prompt, video=pictures) if modality == "video" else user_message(
        prompt, pictures
    )  # fmt: skip


def options(rng: random.Random) -> dict[str, Any]:
    """Greedy, or by a seed."""
    return {
        "temperature": rng.choice((0.0, 0.0, 0.8)),
        "seed": rng.randrange(1000),
        "repeat_penalty": 1.0,
        "max_tokens": rng.choice((1, 8, 24)),
    }


def ask(llama: SteeredLlama, messages: list[Any], rng: random.Random) -> tuple[str, float]:
    reply: Any = llama.create_chat_completion(messages, **options(rng))
    return str(reply["choices"][0]["message"]["content"]), float(reply["mars"]["t"])


def outcome(*replies: tuple[str, float]) -> Outcome:
    return {"texts": [text for text, _ in replies], "t": [t for _, t in replies]}


# Kinds of turns ----------------------------------------------------------------------------------


def chat(process: Process, rng: random.Random) -> Outcome:
    return outcome(ask(process.llama, [message(rng)], rng))


def reset(process: Process, rng: random.Random) -> Outcome:
    process.keeping.reset()
    return outcome(ask(process.keeping, [message(rng)], rng))


def streamed(process: Process, rng: random.Random) -> Outcome:
    chunks = list(stream(process, rng))
    return outcome((text_of(chunks), chunks[-1]["mars"]["t"]))


def given_up(process: Process, rng: random.Random) -> Outcome:
    """A stream that is left after some of its pieces: closed, or dropped turns later."""
    chunks = stream(process, rng)
    texts = [text_of(list(islice(chunks, rng.randint(0, 5))))]
    if rng.random() < 0.5:
        chunks.close()
    else:
        process.given_up.append(chunks)
    return {"texts": texts, "t": []}


def taken_up_again(process: Process, rng: random.Random) -> Outcome:
    """A stream that is read on after another reply began in its context."""
    chunks = stream(process, rng)
    begun = text_of(list(islice(chunks, 2)))
    other = ask(process.llama, [message(rng)], rng)
    try:
        rest = text_of(list(chunks))
    except SteeringError as error:
        rest = str(error)
    return {"texts": [begun, other[0], rest], "t": [other[1]]}


def stream(process: Process, rng: random.Random) -> Any:
    return process.llama.create_chat_completion([message(rng)], stream=True, **options(rng))


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def raw(process: Process, rng: random.Random) -> Outcome:
    """A completion, which goes on where the context begins like its prompt."""
    llama = process.llama
    text = llama.template.render([message(rng, "text")]).text
    reply: Any = llama.create_completion(text, **options(rng))
    assert llama.last_steering is not None
    return outcome((reply["choices"][0]["text"], llama.last_steering.t))


def refused(process: Process, rng: random.Random) -> Outcome:
    """What an error says: of a picture that is none, or of more words than there is room for."""
    asked = message(rng, "image", "pictures", "video")
    url = "data:image/png;base64," + rng.choice(("AAAA", "no base64", "iVBORw0KGgoAAAANSUhEUgAA"))
    broken = {"type": "image_url", "image_url": {"url": url}}
    words = {"type": "text", "text": "Where do people keep tea? " * 500}
    asked["content"].insert(rng.randrange(2), rng.choice((broken, words)))
    llama = rng.choice((process.llama, process.keeping))
    try:
        ask(llama, [asked], rng)
    except (MarsError, ValueError) as error:
        return {"texts": [f"{type(error).__name__}: {error}"], "t": []}
    raise AssertionError("a request that cannot be answered was")


def restored(process: Process, rng: random.Random) -> Outcome:
    """A context that is saved, left for another and restored."""
    llama = process.llama
    before = ask(llama, [message(rng)], rng)
    state, n_tokens, modality = llama.save_state(), llama.n_tokens, llama.context.modality
    ask(llama, [message(rng)], rng)
    llama.load_state(state)
    assert (llama.n_tokens, llama.context.modality) == (n_tokens, modality)
    return outcome(before, ask(llama, [message(rng)], rng))


def conversation(process: Process, rng: random.Random) -> Outcome:
    """Three turns, of which only what is new is evaluated."""
    messages: list[Any] = []
    replies: list[tuple[str, float]] = []
    for _ in range(3):
        messages.append(message(rng))
        replies.append(ask(process.keeping, messages, rng))
        messages.append({"role": "assistant", "content": replies[-1][0]})
    return outcome(*replies)


KINDS: dict[str, tuple[Callable[[Process, random.Random], Outcome], int]] = {
    "chat": (chat, 6),
    "reset": (reset, 1),
    "streamed": (streamed, 4),
    "given up": (given_up, 3),
    "taken up again": (taken_up_again, 1),
    "raw completion": (raw, 2),
    "refused": (refused, 2),
    "restored": (restored, 1),
    "conversation": (conversation, 2),
}
CONTINUING = ("reset", "raw completion", "conversation")


def same(kind: str, here: Outcome, there: Outcome) -> bool:
    """Whether a turn ended alike: to the bit, or up to rounding where prompts are continued."""
    close = ROUNDING if kind in CONTINUING else 0.0
    return here["texts"] == there["texts"] and all(
        abs(a - b) <= close for a, b in zip(here["t"], there["t"], strict=True)
    )


def in_a_fresh_process(seed: int, number: int) -> Outcome:
    command = [sys.executable, "-m", "tests.soak", "--seed", str(seed), "--turn", str(number)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    found: Outcome = json.loads(done.stdout)
    return found


# A long life -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """What this process holds after a turn: resident memory, without mapped files, which the system
    takes back as it likes, and without the pictures that are kept encoded (``cached`` is what those
    take at most in one model)."""

    turn: int
    megabytes: float
    cached: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, process: Process, turn: int) -> Sample:
        gc.collect()
        status = Path("/proc/self/status").read_text()
        resident = 1024 * int(status.split("RssAnon:")[1].split()[0])
        cached = [_cached(llama) for llama in (process.llama, process.keeping)]
        holds = (len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task"))
        return cls(turn, (resident - sum(cached)) / 1e6, max(cached), *holds)


def _cached(llama: SteeredLlama) -> int:
    assert llama.projector is not None
    return llama.projector.encoded.n_bytes


@dataclass
class Life:
    """What was seen in all turns."""

    samples: list[Sample]
    kinds: Counter[str]
    compared: int
    differing: list[str]
    seconds: float

    @property
    def settled(self) -> list[Sample]:
        """The samples after the warm-up."""
        begin = WARM_UP * self.samples[-1].turn
        return [sample for sample in self.samples if sample.turn >= begin]

    @property
    def growth(self) -> float:
        """Megabytes from the warm-up to the end, by a line through all samples."""
        turns = np.array([sample.turn for sample in self.settled])
        slope = np.polyfit(turns, [sample.megabytes for sample in self.settled], 1)[0]
        return float(slope * (turns[-1] - turns[0]))

    def problems(self) -> Iterator[str]:
        first, last = self.settled[0], self.settled[-1]
        if self.growth > MOST_GROWTH:
            yield f"memory grew by {self.growth:.1f} MB, expected at most {MOST_GROWTH:g}"
        if last.cached > MAX_EMBEDDINGS:
            yield f"{last.cached} bytes of encoded pictures, expected at most {MAX_EMBEDDINGS}"
        for what in ("descriptors", "threads"):
            if (left := getattr(last, what) - getattr(first, what)) > 0:
                yield f"{left} {what} were left"
        yield from self.differing

    def __str__(self) -> str:
        first, last = self.settled[0], self.settled[-1]
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.kinds.most_common())
        return (
            f"{self.kinds.total()} turns ({kinds}) in {self.seconds:.0f} s. From turn {first.turn} "
            f"to {last.turn}: resident memory {first.megabytes:.1f} to {last.megabytes:.1f} MB, by "
            f"a line through {len(self.settled)} samples {self.growth:+.2f} MB (bound: "
            f"{MOST_GROWTH:g}); descriptors {first.descriptors} to {last.descriptors}; threads "
            f"{first.threads} to {last.threads}. {self.compared - len(self.differing)} of "
            f"{self.compared} turns ended as in a fresh process."
        )


def live(turns: int, seed: int, check_every: int) -> Life:
    """Play so many turns in this process."""
    process = Process()
    life = Life([], Counter(), 0, [], 0.0)
    began = time.monotonic()
    for number in range(1, turns + 1):
        kind, here = process.play(seed, number)
        life.kinds[kind] += 1
        if number % check_every == 0:
            life.compared += 1
            there = in_a_fresh_process(seed, number)
            if not same(kind, here, there):
                life.differing.append(f"turn {number} ({kind}): {here}, in a fresh process {there}")
        if number % max(1, turns // SAMPLES) == 0:
            life.samples.append(Sample.of(process, number))
    life.seconds = time.monotonic() - began
    return life


def main() -> None:
    p = argparse.ArgumentParser(prog="tests.soak", description=__doc__.split("\n\n")[0])
    p.add_argument("--turns", type=int, default=10_000, metavar="N")
    p.add_argument("--seed", type=int, default=0, metavar="N")
    p.add_argument("--check-every", type=int, default=100, metavar="N")
    p.add_argument("--turn", type=int, metavar="N", help="play this one alone, and print its end")
    args = p.parse_args()
    if args.turn is not None:
        print(json.dumps(Process().play(args.seed, args.turn)[1]))
        return
    life = live(args.turns, args.seed, args.check_every)
    print(life)
    problems = list(life.problems())
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
