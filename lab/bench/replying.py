"""Measures what steering costs while replying, in one process: time to the first token and speed
after it against plain llama-cpp-python, and what it costs to judge each of several pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any

from llama_cpp import Llama

from lab.bench.child import Seconds, reply
from lab.bench.figures import Figure, Run, interleaved, ratios, timed
from lab.bench.subject import Subject
from mars_gguf.convert.prompts import Prompt
from mars_gguf.errors import MarsError
from mars_gguf.media.images import user_message
from mars_gguf.runtime.llama import SteeredLlama, Way
from mars_gguf.runtime.messages import Messages
from mars_gguf.runtime.tap import Tap

PROMPT_TOKENS = 256
REPLY_TOKENS = 64
PICTURES = 4
Trial = tuple[str, Way | None]  # a model, and how it steers
PLAIN: Trial = ("plain", None)
AGAIN: Trial = ("again", None)
# What is held against a plain model: another plain one, or a steered one whose callback is in C or
# in Python.
TRIALS: dict[str, Trial] = {
    "first-token": ("C", None),
    "first-token-python": ("Python", None),
    "first-token-control": AGAIN,
    "generation": ("C", None),
    "generation-python": ("Python", None),
    "generation-control": AGAIN,
    "first-token-inline": ("C", "inline"),
    "first-token-cvec": ("C", "cvec"),
}


def measure_replies(figures: Sequence[Figure], subject: Subject) -> None:
    """Measures those of ``figures`` that TRIALS names. Raises MarsError.

    All models of a repetition, with the same options, are asked the same in turn. They are loaded
    anew for the next one, since a model is some percent faster or slower by where in memory it
    happens to lie. The plain model that is loaded again tells how much.
    """
    figures = [figure for figure in figures if figure.name in TRIALS]
    if not figures:
        return
    tokens, rewinds = _prepare(subject)
    for figure in figures:
        model, way = TRIALS[figure.name]
        if model == "C" and not Tap().compiled:
            figure.absent = "the callback in C was not built"
        elif way == "cvec" and not rewinds:
            figure.absent = "this model's memory cannot be rewound"
    possible = [figure for figure in figures if not figure.absent]
    trials = dict.fromkeys([PLAIN, AGAIN, *(TRIALS[figure.name] for figure in possible)])
    n_reply = REPLY_TOKENS if any(_is_speed(figure) for figure in possible) else 0
    taken = _take(subject, tokens, n_reply, list(trials))
    for figure in possible:
        _fill(figure, taken, len(tokens))


def _is_speed(figure: Figure) -> bool:
    """Whether the tokens after the first are timed, not it."""
    return figure.name.startswith("generation")


def _prepare(subject: Subject) -> tuple[list[int], bool]:
    """A prompt of several harmless ones, of about PROMPT_TOKENS; and whether the model's memory can
    be rewound."""
    with closing(SteeredLlama(subject.model, vector=None, **subject.options)) as llama:
        if llama.n_ctx() < PROMPT_TOKENS + REPLY_TOKENS:
            raise MarsError(
                f"found a context of {llama.n_ctx()} tokens, expected room for {PROMPT_TOKENS} of "
                f"prompt and {REPLY_TOKENS} of reply. Raise --ctx-size."
            )
        text, tokens = "", list[int]()
        for more in subject.sets.contrast.harmless * 8:
            text = f"{text} {more}".strip()
            (longer,) = llama.chunks(Prompt(text).messages)
            if longer.n_tokens > PROMPT_TOKENS and tokens:
                break
            tokens = list(longer.tokens)
        return tokens, llama.context.memory.rewinds


def _take(
    subject: Subject, tokens: Sequence[int], n_reply: int, trials: Sequence[Trial]
) -> dict[Trial, list[Seconds]]:
    """Times each of ``trials`` by `_seconds` in each repetition: the mean of two, there and back,
    so that a machine that becomes slower or faster meanwhile does so for all alike."""
    taken: dict[Trial, list[Seconds]] = {trial: [] for trial in trials}
    for turn in range(subject.repetitions):
        in_turn = list(trials)[:: -1 if turn % 2 else 1]
        with ExitStack() as stack:
            models = dict[str, Any]()
            for name in dict.fromkeys(name for name, _ in in_turn):
                models[name] = stack.enter_context(closing(_load(subject, name)))
                reply(models[name], tokens, 0)  # warms it up
            found: dict[Trial, list[Seconds]] = {trial: [] for trial in trials}
            for name, way in [*in_turn, *in_turn[::-1]]:
                found[name, way].append(_seconds(models[name], way, tokens, n_reply))
            for trial, (there, back) in found.items():
                taken[trial].append(((there[0] + back[0]) / 2, (there[1] + back[1]) / 2))
    return taken


def _load(subject: Subject, name: str) -> Llama:
    if name in ("plain", "again"):
        return Llama(subject.model, **subject.plain)
    return SteeredLlama(
        subject.model, vector=subject.vector, compiled=name == "C", **subject.options
    )


def _seconds(llama: Llama, way: Way | None, tokens: Sequence[int], n_reply: int) -> Seconds:
    """As `reply`; a steered model steers in ``way`` whatever the prompt is, without one never."""
    if not isinstance(llama, SteeredLlama):
        return reply(llama, tokens, n_reply)
    llama.steerer.push.way = way or "inline"
    policy = llama.vectors["mars"].policy()
    with llama.using(replace(policy, gate="open" if way else "shut", strength=1.0)):
        seconds = reply(llama, tokens, 0 if way else n_reply)
    assert llama.last_steering is not None and llama.last_steering.way == way
    return seconds


def _fill(figure: Figure, taken: dict[Trial, list[Seconds]], n_tokens: int) -> None:
    trial, speed = TRIALS[figure.name], _is_speed(figure)
    plain, again, compared = (
        [seconds[speed] for seconds in taken[each]] for each in (PLAIN, AGAIN, trial)
    )
    figure.values = {"plain": plain, "again": again, "compared": compared}
    figure.samples, figure.control = (
        ratios(plain, other) if speed else ratios(other, plain) for other in (compared, again)
    )
    figure.note = f"prompt of {n_tokens} tokens"
    figure.note += f", {REPLY_TOKENS} tokens after the first" if speed else ""
    if trial == AGAIN:
        figure.note += "; what it is from 1 is noise"


def pictures(figure: Figure, subject: Subject) -> None:
    """Measures the time to the first token where each of PICTURES pictures is judged alone, too,
    against the same without steering."""
    if subject.mmproj is None:
        figure.absent = "no mmproj"
        return
    shown = subject.pictures(PICTURES)
    messages = [user_message("What do these pictures have in common?", shown)]
    with closing(
        SteeredLlama(subject.model, vector=subject.vector, mmproj=subject.mmproj, **subject.options)
    ) as llama:
        shut = replace(llama.policies[0], gate="shut")
        runs: dict[str, Run] = {
            name: timed(partial(_first_token, llama, messages, within))
            for name, within in (("unsteered", llama.using), ("judged", partial(llama.using, shut)))
        }
        figure.values = interleaved(runs, subject.repetitions)
        n_tokens = sum(chunk.n_tokens for chunk in llama.chunks(messages))
    figure.samples = ratios(figure.values["judged"], figure.values["unsteered"])
    figure.note = f"{len(shown)} pictures in a prompt of {n_tokens} tokens, their encoding included"


def _first_token(
    llama: SteeredLlama, messages: Messages, within: Callable[[], AbstractContextManager[None]]
) -> None:
    assert llama.projector is not None
    llama.projector.forget()
    llama.reset()
    with within():
        llama.create_chat_completion(list(messages), temperature=0.0, max_tokens=1)  # type: ignore[arg-type]
