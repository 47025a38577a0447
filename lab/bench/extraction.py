"""Measures what reading hidden states costs, and a whole conversion, against llama.cpp's own work
on the same prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
from llama_cpp import llama_cpp as lib

from lab.bench.figures import Figure, Run, interleaved, ratios, timed
from lab.bench.subject import Asked, Subject
from mars_gguf.convert import pipeline
from mars_gguf.convert.choices import Calibration
from mars_gguf.convert.extract_gguf import GgufExtractor, GgufSession
from mars_gguf.convert.prompt_sets import gather, renderable
from mars_gguf.convert.prompts import Prompt
from mars_gguf.runtime.chunks import Chunk
from mars_gguf.runtime.prefill import MAX_SEQUENCES, CachedPrompt, Decoder, Prefill
from mars_gguf.runtime.tap import Rows

E = TypeVar("E", bound=GgufExtractor)

NAMES = ("extraction-text", "extraction-images", "conversion")


class TimedDecoder(Decoder):
    """A decoder that counts what it decodes: seconds within llama.cpp, and tokens."""

    seconds = 0.0
    n_tokens = 0

    def decode(self, batch: Any) -> None:
        began = time.perf_counter()
        super().decode(batch)
        self._count(began, batch.n_tokens)

    def picture(self, sequence: CachedPrompt, chunk: Chunk) -> int:
        assert self.llama.projector is not None
        self.llama.projector.encode(chunk)  # which the projector times
        began = time.perf_counter()
        after = super().picture(sequence, chunk)
        self._count(began, chunk.n_tokens)
        return after

    def _count(self, began: float, n_tokens: int) -> None:
        lib.llama_synchronize(self.llama.ctx)
        self.seconds += time.perf_counter() - began
        self.n_tokens += n_tokens


class Limit(GgufExtractor):
    """An extractor that does llama.cpp's own work alone, in a context without a callback."""

    context_overrides: ClassVar[dict[str, Any]] = GgufExtractor.context_overrides | {
        "cb_eval": lib.ggml_backend_sched_eval_callback()
    }

    sees_states = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decoder.close()
        self.decoder = self.timed = TimedDecoder(self.llama, self.decoder.n_sequences)
        self.prefill = Prefill(self.llama, self.decoder)
        if self.thinker is not None:
            self.thinker.decoder = self.decoder

    def run(self, prompts: Sequence[Prompt]) -> float:
        """Decodes all of ``prompts``; returns the seconds of encoding pictures and of decoding."""
        self.forget()  # the repetition before
        self.timed.n_tokens, before = 0, self._seconds()
        for _, session in self.sessions(prompts):
            self.timed.last_tokens(session.prompts)
        return self._seconds() - before

    def _seconds(self) -> float:
        projector = self.llama.projector
        return self.timed.seconds + (projector.seconds if projector is not None else 0.0)


class Recorded(GgufExtractor):
    """An extractor that keeps what it was asked. ``asked``: the prompts, each once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: dict[int, Prompt] = {}

    def sessions(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], GgufSession]]:
        self.asked |= {id(prompt): prompt for prompt in prompts}
        return super().sessions(prompts)


def measure_extraction(subject: Subject, asked: Asked) -> Iterator[Figure]:
    """Measures the figures that are asked for."""
    for figure in asked.figures(NAMES):
        if figure.name == "conversion":
            converted(figure, subject, Calibration())
        elif figure.name == "extraction-text":
            prompts = subject.text_prompts()[:MAX_SEQUENCES]
            _extracted(figure, subject, prompts, asked.repetitions)
        elif subject.mmproj is not None:
            _extracted(figure, subject, subject.picture_prompts(), asked.repetitions)
        else:
            figure.absent = "no mmproj"
        yield figure


def extract(extractor: GgufExtractor, prompts: Sequence[Prompt]) -> Rows:
    """Reads the hidden states of all ``prompts``, [n, n_layer, n_embd], as a conversion does."""
    extractor.forget()  # the repetition before
    states = np.empty((len(prompts), extractor.n_layer, extractor.n_embd), np.float32)
    for indices, session in extractor.sessions(prompts):
        states[indices] = session.observe()[0]
    return states


def _extracted(
    figure: Figure, subject: Subject, prompts: Sequence[Prompt], repetitions: int
) -> None:
    with (
        closing(_load(GgufExtractor, subject)) as extractor,
        closing(_load(Limit, subject)) as limit,
    ):
        runs: dict[str, Run] = {
            "llama.cpp": partial(limit.run, prompts),
            "extraction": timed(partial(extract, extractor, prompts)),
        }
        figure.values = interleaved(runs, repetitions)
    figure.samples = ratios(*figure.values.values())
    n_tokens = limit.timed.n_tokens
    rate = n_tokens / float(np.median(figure.values["extraction"]))
    figure.note = (
        f"{len(prompts)} prompts, {n_tokens} tokens, {rate:.0f} a second; "
        "rendering and tokenizing included"
    )


def converted(figure: Figure, subject: Subject, calibration: Calibration) -> None:
    """Measures a whole conversion, once: it takes minutes."""
    sets = gather(subject.prompts, calibration.seed, sees=subject.mmproj is not None)
    with closing(_load(Recorded, subject)) as extractor, closing(_load(Limit, subject)) as limit:
        sets = renderable(extractor, sets)
        for one in (extractor, limit):
            one.make_room(sets.longest())
        convert = partial(
            pipeline.measure_vector, extractor, sets, calibration, source={}, progress=False
        )
        ours = timed(convert)()
        prompts = list(extractor.asked.values())
        theirs = limit.run(prompts)
    figure.values = {"conversion": [ours], "llama.cpp": [theirs]}
    figure.samples = [ours / theirs]
    figure.note = (
        f"once, {len(prompts)} prompts, {limit.timed.n_tokens} tokens: {ours:.0f} s, of which "
        f"llama.cpp's prefill and encoding take {theirs:.0f} s; the rest are replies, plain and "
        "forced"
    )


def _load(kind: type[E], subject: Subject) -> E:
    return kind(subject.model, subject.mmproj, **subject.reading)
