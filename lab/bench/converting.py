"""Measures a whole conversion against llama.cpp's own work on the same prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, ClassVar

from llama_cpp import llama_cpp as lib

from lab.bench.figures import Figure
from lab.bench.subject import Subject
from mars_gguf.convert import pipeline
from mars_gguf.convert.choices import Calibration
from mars_gguf.convert.extract_gguf import GgufExtractor, GgufSession
from mars_gguf.convert.prompt_sets import gather, renderable
from mars_gguf.convert.prompts import Prompt
from mars_gguf.runtime.chunks import Chunk
from mars_gguf.runtime.prefill import CachedPrompt, Decoder, Prefill


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
        for _, session in self.sessions(prompts):
            self.timed.last_tokens(session.prompts)
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


def conversion(figure: Figure, subject: Subject, calibration: Calibration | None = None) -> None:
    """Measures a whole conversion, once: it takes minutes."""
    calibration = calibration or Calibration()
    files, reading = (subject.model, subject.mmproj), subject.reading
    sets = gather(subject.prompts, calibration.seed, sees=subject.mmproj is not None)
    with (
        closing(Recorded(*files, **reading)) as extractor,
        closing(Limit(*files, **reading)) as limit,
    ):
        sets = renderable(extractor, sets)
        for one in (extractor, limit):
            one.make_room(sets.longest())
        began = time.perf_counter()
        pipeline.measure_vector(extractor, sets, calibration, source={}, progress=False)
        ours = time.perf_counter() - began
        prompts = list(extractor.asked.values())
        theirs = limit.run(prompts)
    figure.values = {"conversion": [ours], "llama.cpp": [theirs]}
    figure.samples = [ours / theirs]
    figure.note = (
        f"once, {len(prompts)} prompts, {limit.timed.n_tokens} tokens: {ours:.0f} s, of which "
        f"llama.cpp's prefill and encoding take {theirs:.0f} s; the rest are replies, plain and "
        "forced"
    )
