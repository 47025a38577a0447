"""What measuring hidden states costs, against llama.cpp's own work on the same prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from llama_cpp import llama_cpp as lib

from mars_gguf.bench.figures import Aim, Figure, Line, interleaved, ratios, timed
from mars_gguf.bench.subject import Material, Subject
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.prompts import Prompt
from mars_gguf.runtime.mtmd import MediaChunk
from mars_gguf.runtime.sequences import MAX_SEQUENCES, CachedPrompt, Decoder, Prefill
from mars_gguf.runtime.tap import Rows

PICTURES = 16
LINES = ["layers", "prompts", "context", "images"]
Started = Callable[[str], object]


def figures() -> list[Figure]:
    return [
        Figure(
            "extraction-text",
            "extraction of text, all blocks, prompt tokens a second",
            "llama.cpp's prefill of the same tokens and batches",
            Aim(0.90, at_least=True),
        ),
        Figure(
            "extraction-images",
            "extraction with pictures, all blocks, prompts a second",
            "picture encoding + prefill, each alone",
            Aim(0.90, at_least=True),
        ),
    ]


NAMES = [figure.name for figure in figures()]


class TimedDecoder(Decoder):
    """Counts what it decodes: seconds within llama.cpp, and tokens."""

    seconds = 0.0
    n_tokens = 0

    def decode(self, batch: Any) -> None:
        began = time.perf_counter()
        super().decode(batch)
        self._count(began, batch.n_tokens)

    def picture(self, sequence: CachedPrompt, chunk: MediaChunk) -> int:
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
    """llama.cpp's own work on an extractor's prompts, in a context without a callback."""

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
        """Decode all of ``prompts``; the seconds spent on encoding pictures and on decoding."""
        self.forget()  # the repetition before
        self.timed.n_tokens, before = 0, self._seconds()
        for _, session in self.sessions(prompts):
            self.timed.last_tokens(session.prompts)
        return self._seconds() - before

    def _seconds(self) -> float:
        projector = self.llama.projector
        return self.timed.seconds + (projector.seconds if projector is not None else 0.0)


def extract(
    extractor: GgufExtractor, prompts: Sequence[Prompt], n_layer: int | None = None
) -> Rows:
    """Hidden states of all ``prompts``, [n, n_layer, n_embd], as a conversion reads them."""
    extractor.forget()  # the repetition before
    states = np.empty((len(prompts), n_layer or extractor.n_layer, extractor.n_embd), np.float32)
    for indices, session in extractor.sessions(prompts):
        states[indices] = session.observe(n_layer)[0]
    return states


def text_prompts(given: Material) -> list[Prompt]:
    pairs = zip(given.contrast.harmful, given.contrast.harmless, strict=False)
    return [Prompt(text) for pair in pairs for text in pair]


def picture_prompts(given: Material) -> list[Prompt]:
    """Neutral prompts with one picture each, no picture twice."""
    single = [prompt for prompt in given.neutral if len(prompt.images) == 1]
    distinct = {prompt.images[0].tobytes(): prompt for prompt in single}
    return list(distinct.values())[:PICTURES]


def measure(
    subject: Subject,
    repetitions: int,
    only: Collection[str],
    started: Started = lambda name: None,
) -> Iterator[Figure]:
    """The figures named in ``only``."""
    wanted = [figure for figure in figures() if figure.name in only]
    if not wanted:
        return
    extractor, limit = (
        kind(subject.model, subject.mmproj, **subject.reading) for kind in (GgufExtractor, Limit)
    )
    assert isinstance(limit, Limit)
    try:
        for figure in wanted:
            started(figure.name)
            pictures = figure.name == "extraction-images"
            if pictures and not extractor.sees_images:
                figure.absent = "no mmproj"
            elif pictures:
                _measure(figure, extractor, limit, picture_prompts(subject.given), repetitions)
            else:
                prompts = text_prompts(subject.given)[:MAX_SEQUENCES]
                _measure(figure, extractor, limit, prompts, repetitions)
            yield figure
    finally:
        limit.close()
        extractor.close()


def _measure(
    figure: Figure,
    extractor: GgufExtractor,
    limit: Limit,
    prompts: Sequence[Prompt],
    repetitions: int,
) -> None:
    figure.values = interleaved(
        {
            "llama.cpp": lambda: limit.run(prompts),
            "extraction": timed(partial(extract, extractor, prompts)),
        },
        repetitions,
    )
    figure.samples = ratios(figure.values["llama.cpp"], figure.values["extraction"])
    n_tokens = limit.timed.n_tokens
    rate = n_tokens / float(np.median(figure.values["extraction"]))
    figure.note = (
        f"{len(prompts)} prompts, {n_tokens} tokens, {rate:.0f} a second; "
        "rendering and tokenizing included"
    )


# Cost against size -------------------------------------------------------------------------------


def lines(
    subject: Subject,
    repetitions: int,
    only: Collection[str],
    started: Started = lambda name: None,
) -> Iterator[Line]:
    """Seconds of extraction against the number of blocks, prompts, tokens of a prompt, and
    pictures; those named in ``only``."""
    if not set(LINES) & set(only):
        return
    extractor = GgufExtractor(subject.model, subject.mmproj, **subject.reading)
    texts = text_prompts(subject.given)
    pictures = picture_prompts(subject.given) if extractor.sees_images else []
    some = texts[:16]
    sizes: dict[str, tuple[str, dict[int, list[Prompt]]]] = {
        "layers": (
            f"blocks read (of {len(some)} prompts)",
            dict.fromkeys(_steps(extractor.n_layer), some),
        ),
        "prompts": (
            "prompts",
            {n: texts[:n] for n in (8, 16, 24, 32, 48, 64) if n <= len(texts)},
        ),
        "context": ("tokens of one prompt", _long_prompts(extractor, texts)),
        "images": ("pictures, one a prompt", {n: pictures[:n] for n in _steps(len(pictures))}),
    }
    try:
        for name, (label, points) in sizes.items():
            if name in only and len(points) > 1:
                started(name)
                runs = {
                    str(n): timed(partial(extract, extractor, p, n if name == "layers" else None))
                    for n, p in points.items()
                }
                seconds = interleaved(runs, repetitions)
                yield Line(name, label, [float(n) for n in points], list(seconds.values()))
    finally:
        extractor.close()


def _steps(most: int) -> list[int]:
    """At most six whole numbers from 1 to ``most``, evenly."""
    return sorted({round(x) for x in np.linspace(1, most, 6)}) if most else []


def _long_prompts(extractor: GgufExtractor, texts: Sequence[Prompt]) -> dict[int, list[Prompt]]:
    """Prompts of about 128 to 1024 tokens, by their number of tokens."""
    prompts = dict[int, list[Prompt]]()
    longest, n = Prompt(""), 0
    wanted = [128, 256, 512, 768, 1024]
    for text in [p.text for p in texts] * 64:
        longer = Prompt(f"{longest.text} {text}".strip())
        n_longer = extractor.length(longer)
        while wanted and n_longer > min(wanted[0], extractor.n_cells - 1):
            prompts[n] = [longest]
            wanted.pop(0)
        if not wanted:
            break
        longest, n = longer, n_longer
    prompts.pop(0, None)
    return prompts
