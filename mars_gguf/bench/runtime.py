"""What steering costs while replying: time to the first token, and speed after it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.bench.figures import Aim, Figure, interleaved, ratios
from mars_gguf.errors import MarsError
from mars_gguf.evaluate.arms import NEVER, UNSTEERED, Arm, steered_by
from mars_gguf.runtime.llama import SteeredLlama, Way

PROMPT_TOKENS = 256
REPLY_TOKENS = 64
SAMPLE_SECONDS = 0.3
GREEDY: dict[str, Any] = {"temp": 0.0, "repeat_penalty": 1.0}
OPEN = Arm("open", "gate held open", lambda g: replace(g, gate_opens=-NEVER))


def figures() -> list[Figure]:
    return [
        Figure(
            "first-token",
            "time to first token, harmless prompt",
            "plain llama-cpp-python",
            Aim(1.01),
        ),
        Figure(
            "first-token-control",
            "the same, plain llama-cpp-python loaded again",
            "plain llama-cpp-python",
            None,
        ),
        Figure(
            "generation",
            "tokens a second while generating",
            "plain llama-cpp-python",
            Aim(0.995, at_least=True),
        ),
        Figure(
            "generation-control",
            "the same, plain llama-cpp-python loaded again",
            "plain llama-cpp-python",
            None,
        ),
        Figure(
            "first-token-cvec",
            "time to first token, steered prompt, cvec",
            "plain + one single-token decode",
            Aim(1.02),
        ),
        Figure(
            "first-token-inline",
            "time to first token, steered prompt, inline",
            "plain llama-cpp-python",
            Aim(1.01),
        ),
    ]


NAMES = [figure.name for figure in figures()]


def measure(
    model: str,
    vector: str,
    harmless: Sequence[str],
    options: dict[str, Any],
    repetitions: int,
    only: Collection[str],
    *,
    force: bool = False,
    started: Callable[[str], object] = lambda name: None,
) -> list[Figure]:
    """The figures named in ``only``. Two models in one process: a plain ``llama_cpp.Llama`` and a
    ``SteeredLlama`` of the same file with the same ``options``; for the controls, whose distance
    from 1 is noise, a second plain one. They are loaded anew for each repetition, since a model is
    some percent faster or slower by where in memory it happens to lie. Raises MarsError."""
    wanted = [figure for figure in figures() if figure.name in only]
    if options.get("n_ctx"):  # as SteeredLlama rounds it
        options = options | {"n_ctx": -(-options["n_ctx"] // 256) * 256}
    controls = any(figure.name.endswith("-control") for figure in wanted)
    bench = None
    for turn in range(repetitions):
        with ExitStack() as models:

            def load(kind: type[Llama], **more: Any) -> Any:
                llama = kind(model, verbose=False, **options, **more)
                models.callback(llama.close)
                return llama

            before = load(Llama) if turn % 2 else None
            steered = load(SteeredLlama, vector=vector, force=force)
            plain = before or load(Llama)
            again = load(Llama) if controls else plain
            if bench is None:
                bench = _Bench(*_prompt(steered, harmless))
            bench.take(plain, steered, again)
            for figure in wanted:
                if turn == 0:
                    started(figure.name)
                bench.measure(figure)
    return wanted


def _prompt(llama: SteeredLlama, harmless: Sequence[str]) -> tuple[list[int], Arm | None]:
    """A prompt of several harmless ones, of about PROMPT_TOKENS, that the vector leaves alone; with
    an arm that shuts the gate if it leaves none of those tried alone."""
    wanted = PROMPT_TOKENS - 32  # what the chat template adds
    if llama.n_ctx() < PROMPT_TOKENS + REPLY_TOKENS + 64:
        raise MarsError(
            f"found a context of {llama.n_ctx()} tokens, expected room for {PROMPT_TOKENS} of "
            f"prompt and {REPLY_TOKENS} of reply. Raise --ctx-size."
        )
    tokens: list[int] = []
    for start in range(min(len(harmless), 8)):
        text = ""
        for more in [*harmless[start:], *harmless[:start]] * 4:
            longer = f"{text} {more}".strip()
            if len(llama.tokenize(longer.encode(), add_bos=False)) > wanted and text:
                break
            text = longer
        _forget(llama)
        llama.create_chat_completion([{"role": "user", "content": text}], max_tokens=1)
        tokens = llama.input_ids[: llama.n_tokens].tolist()
        if llama.last_steering is not None and llama.last_steering.alpha == 0:
            return tokens, None
    return tokens, UNSTEERED


def _forget(llama: Llama) -> None:
    llama.reset()
    llama._ctx.kv_cache_clear()


class _Bench:
    """The prompt, and the models that are loaded at the time."""

    plain: Llama
    steered: SteeredLlama
    again: Llama

    def __init__(self, tokens: list[int], harmless: Arm | None) -> None:
        self.tokens, self.harmless = tokens, harmless
        self.rounds: dict[str, int] = {}
        self.turn = 0

    def take(self, plain: Llama, steered: SteeredLlama, again: Llama) -> None:
        """Go on with these models, each warmed up by one prompt."""
        self.plain, self.steered, self.again = plain, steered, again
        self.turn += 1
        for llama in (plain, steered, again):
            self._first_token(llama)()

    def measure(self, figure: Figure) -> None:
        """Add a sample to ``figure``."""
        if figure.name == "first-token-cvec":
            return self._first_token_steered(figure, "cvec")
        if figure.name == "first-token-inline":
            return self._first_token_steered(figure, "inline")
        generation = figure.name.startswith("generation")
        control = figure.name.endswith("-control")
        work = self._generation if generation else self._first_token
        compared = self.again if control else self.steered
        with _as(self.steered, self.harmless):
            runs = {"plain": work(self.plain), "again" if control else "steered": work(compared)}
            self._sample(figure, runs)
            steering = self.steered.last_steering
            assert control or (steering is not None and steering.alpha == 0)
        below, above = figure.values.values()
        if generation:  # seconds, so the other way round
            above, below = below, above
            figure.note += f", {REPLY_TOKENS} tokens after the first"
        if control:
            figure.note += "; what it is from 1 is noise"
        elif self.harmless is not None:
            figure.note += ", gate held shut: the vector leaves no such prompt alone"
        figure.samples = ratios(above, below)
        return None

    def _first_token_steered(self, figure: Figure, way: Way) -> None:
        if way == "cvec" and not self.steered.memory_can_rewind():
            figure.absent = "this model's memory cannot be rewound"
            return
        runs = {"plain": self._first_token(self.plain), "steered": self._first_token(self.steered)}
        if way == "cvec":
            runs = {"decode": self._single_decode} | runs
        before, self.steered.way = self.steered.way, way
        try:
            with steered_by(self.steered, OPEN):
                self._sample(figure, runs)
                assert self.steered.last_steering is not None
                if self.steered.last_steering.alpha == 0:
                    figure.absent = "the prompt lies beyond the trust limit: nothing to steer"
                    return
        finally:
            self.steered.way = before
        limit = figure.values["plain"]
        if way == "cvec":
            limit = [sum(pair) for pair in zip(limit, figure.values["decode"], strict=True)]
        figure.samples = ratios(figure.values["steered"], limit)
        figure.note += ", gate held open"

    def _sample(self, figure: Figure, runs: Mapping[str, Callable[[], float]]) -> None:
        """Add to the figure's values the medians of as many interleaved ``runs`` as last
        SAMPLE_SECONDS each."""
        if figure.name not in self.rounds:
            self.rounds[figure.name] = math.ceil(SAMPLE_SECONDS / runs["plain"]())
        rounds = self.rounds[figure.name]
        order = list(runs.items())[:: 1 if self.turn % 2 else -1]
        for name, seconds in interleaved(dict(order), rounds, warmup=0).items():
            figure.values.setdefault(name, []).append(statistics.median(seconds))
        figure.values = {name: figure.values[name] for name in runs}
        figure.note = f"prompt of {len(self.tokens)} tokens"
        figure.note += f", {rounds} times a sample" if rounds > 1 else ""

    def _first_token(self, llama: Llama) -> Callable[[], float]:
        """Seconds from an empty context to the first token of ``Llama.generate``."""

        def run() -> float:
            _forget(llama)
            began = time.perf_counter()
            reply = llama.generate(self.tokens, **GREEDY)
            next(reply)
            seconds = time.perf_counter() - began
            reply.close()
            return seconds

        return run

    def _generation(self, llama: Llama) -> Callable[[], float]:
        """Seconds for REPLY_TOKENS tokens after the first."""

        def run() -> float:
            _forget(llama)
            reply = llama.generate(self.tokens, **GREEDY)
            next(reply)
            began = time.perf_counter()
            for _ in range(REPLY_TOKENS):
                next(reply)
            seconds = time.perf_counter() - began
            reply.close()
            return seconds

        return run

    def _single_decode(self) -> float:
        """Seconds to decode the prompt's last token once more, alone, in the plain model."""
        llama, n = self.plain, len(self.tokens)
        _forget(llama)
        llama.eval(self.tokens)
        lib.llama_synchronize(llama.ctx)
        llama._ctx.kv_cache_seq_rm(-1, n - 1, -1)
        llama.n_tokens = n - 1
        began = time.perf_counter()
        llama.eval(self.tokens[-1:])
        lib.llama_synchronize(llama.ctx)
        return time.perf_counter() - began


@contextmanager
def _as(llama: SteeredLlama, arm: Arm | None) -> Iterator[None]:
    if arm is None:
        yield
    else:
        with steered_by(llama, arm):
            yield
