"""Measures what it costs to judge each of several pictures alone, besides all of them together:
time to the first token, against the same without steering."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import partial

from lab.bench.extraction import picture_prompts
from lab.bench.figures import Figure, Run, interleaved, ratios, timed
from lab.bench.subject import Asked, Subject
from mars_gguf.media.images import user_message
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.messages import Messages

NAME = "first-token-pictures"
PICTURES = 4


def measure(subject: Subject, asked: Asked) -> Iterator[Figure]:
    """Measures the figure if it is asked for."""
    for figure in asked.figures([NAME]):
        if subject.mmproj is None:
            figure.absent = "no mmproj"
        else:
            _measured(figure, subject, asked.repetitions)
        yield figure


def _measured(figure: Figure, subject: Subject, repetitions: int) -> None:
    shown = [prompt.images[0] for prompt in picture_prompts(subject)[:PICTURES]]
    messages = [user_message("What do these pictures have in common?", shown)]
    with closing(
        SteeredLlama(subject.model, vector=subject.vector, mmproj=subject.mmproj, **subject.options)
    ) as llama:
        shut = replace(llama.policies[0], gate="shut")
        runs: dict[str, Run] = {
            name: timed(partial(_first_token, llama, messages, within))
            for name, within in (("unsteered", llama.using), ("judged", partial(llama.using, shut)))
        }
        figure.values = interleaved(runs, repetitions)
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
