"""What measuring hidden states costs, against llama.cpp's own prefill of the same tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from llama_cpp import llama_cpp as lib

from mars_gguf import demo_model
from mars_gguf.bench.figures import Aim, Figure, Line, interleaved, ratios, timed
from mars_gguf.convert.extract_gguf import MAX_SEQUENCES, GgufExtractor
from mars_gguf.convert.probes import neutral_probes, paired_probes
from mars_gguf.convert.prompts import ContrastPrompts, Prompt, builtin_contrast, read_prompts
from mars_gguf.runtime.tap import Rows

PICTURES = 16
LINES = ["layers", "prompts", "context", "images"]
Started = Callable[[str], object]


@dataclass(frozen=True)
class Material:
    """What is converted with: contrast prompts, neutral prompts with one picture, and the
    arguments that make mars_gguf.convert use the same."""

    contrast: ContrastPrompts
    neutral: list[Prompt] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)


def material(demo: bool, images: bool) -> Material:
    """The demo model's own, or what the converter has built in."""
    if not demo:
        neutral = neutral_probes(96, 224, 0)["image"] if images else []
        return Material(builtin_contrast(), neutral)
    files = {
        option: demo_model.FOLDER / f"{name}.jsonl"
        for option, name in (
            ("--harmful", "harmful"),
            ("--harmless", "harmless"),
            ("--neutral-media", "neutral"),
        )
    }
    return Material(
        ContrastPrompts(read_prompts(files["--harmful"]), read_prompts(files["--harmless"])),
        paired_probes(files["--neutral-media"])["image"],
        [str(part) for pair in files.items() for part in pair],
    )


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


class Prefill(GgufExtractor):
    """llama.cpp's own work on the extractor's prompts, in a context without a callback: the time
    spent within its encode and decode calls, all tokens of a session's prompts batch by batch."""

    context_overrides: ClassVar[dict[str, Any]] = GgufExtractor.context_overrides | {
        "cb_eval": lib.ggml_backend_sched_eval_callback()
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds = 0.0
        self.positions = 0

    def group(self, prompts: Sequence[Prompt]) -> list[Any]:
        """``prompts`` of one session, tokenized; to be freed with ``release``."""
        group = [self._sequence(prompt) for prompt in prompts]
        for number, sequence in enumerate(group):
            sequence.number = number
        return group

    def release(self, groups: Sequence[list[Any]]) -> None:
        for sequence in (sequence for group in groups for sequence in group):
            self._free(sequence)

    def run(self, groups: Sequence[list[Any]]) -> float:
        self.forget()  # the repetition before
        self.seconds, self.positions = 0.0, 0
        for group in groups:
            self._run(group)
        return self.seconds

    def _run(self, group: list[Any]) -> None:
        self._empty(group)
        self._prefill(group)
        self.decode([(s.tail[-1], s.n_past, (i,), True) for i, s in enumerate(group)])

    def _encode(self, picture: Any) -> Any:
        with self._timed():
            return super()._encode(picture)

    def _decode_picture(self, sequence: Any, picture: Any, embeddings: Any) -> int:
        before = sequence.n_past
        with self._timed():
            after = super()._decode_picture(sequence, picture, embeddings)
        self.positions += after - before
        return after

    def _decode_batch(self, batch: Any) -> None:
        with self._timed():
            super()._decode_batch(batch)
        self.positions += batch.n_tokens

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        lib.llama_synchronize(self.llama.ctx)
        self.seconds += time.perf_counter() - began


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
    distinct = {prompt.images[0].tobytes(): prompt for prompt in given.neutral}
    return list(distinct.values())[:PICTURES]


def measure(
    model: str,
    mmproj: str | None,
    given: Material,
    options: dict[str, Any],
    repetitions: int,
    only: Collection[str],
    started: Started = lambda name: None,
) -> Iterator[Figure]:
    """The figures named in ``only``. ``options`` are those of GgufExtractor."""
    extractor, prefill = (
        GgufExtractor(model, mmproj, **options),
        Prefill(model, mmproj, **options),
    )
    try:
        for figure in figures():
            if figure.name not in only:
                continue
            started(figure.name)
            prompts = (
                text_prompts(given)[:MAX_SEQUENCES]
                if figure.name == "extraction-text"
                else picture_prompts(given)
            )
            if prompts and (extractor.sees_images or not prompts[0].images):
                _measure(figure, extractor, prefill, prompts, repetitions)
            else:
                figure.absent = "no mmproj"
            yield figure
    finally:
        prefill.close()
        extractor.close()


def _measure(
    figure: Figure,
    extractor: GgufExtractor,
    prefill: Prefill,
    prompts: Sequence[Prompt],
    repetitions: int,
) -> None:
    groups = [
        prefill.group([prompts[i] for i in indices]) for indices, _ in extractor.sessions(prompts)
    ]
    try:
        figure.values = interleaved(
            {
                "prefill": lambda: prefill.run(groups),
                "extraction": timed(lambda: extract(extractor, prompts)),
            },
            repetitions,
        )
    finally:
        prefill.release(groups)
    figure.samples = ratios(figure.values["prefill"], figure.values["extraction"])
    rate = prefill.positions / float(np.median(figure.values["extraction"]))
    figure.note = (
        f"{len(prompts)} prompts, {prefill.positions} positions, {rate:.0f} a second; "
        "rendering and tokenizing included"
    )


# Cost against size -------------------------------------------------------------------------------


def lines(
    model: str,
    mmproj: str | None,
    given: Material,
    options: dict[str, Any],
    repetitions: int,
    only: Collection[str],
    started: Started = lambda name: None,
) -> Iterator[Line]:
    """Seconds of extraction against the number of blocks, prompts, tokens of a prompt, and
    pictures; those named in ``only``."""
    extractor = GgufExtractor(model, mmproj, **options)
    texts, pictures = text_prompts(given), picture_prompts(given)
    try:
        sizes: dict[str, tuple[str, dict[int, list[Prompt]]]] = {
            "layers": (
                f"blocks read (of {min(16, len(texts))} prompts)",
                dict.fromkeys(_steps(extractor.n_layer, 6), texts[:16]),
            ),
            "prompts": (
                "prompts",
                {n: texts[:n] for n in (8, 16, 24, 32, 48, 64) if n <= len(texts)},
            ),
            "context": ("tokens of one prompt", _long_prompts(extractor, texts)),
            "images": (
                "pictures, one a prompt",
                {n: pictures[:n] for n in _steps(len(pictures), 6)},
            ),
        }
        for name, (label, points) in sizes.items():
            if name in only and len(points) > 1 and (name != "images" or extractor.sees_images):
                started(name)
                runs = {
                    str(n): timed(_extraction(extractor, prompts, n if name == "layers" else None))
                    for n, prompts in points.items()
                }
                seconds = interleaved(runs, repetitions)
                yield Line(name, label, [float(n) for n in points], list(seconds.values()))
    finally:
        extractor.close()


def _extraction(
    extractor: GgufExtractor, prompts: Sequence[Prompt], n_layer: int | None
) -> Callable[[], object]:
    return lambda: extract(extractor, prompts, n_layer)


def _steps(most: int, n: int) -> list[int]:
    """At most ``n`` whole numbers from 1 to ``most``, evenly."""
    return sorted({round(x) for x in np.linspace(1, most, n)}) if most else []


def _long_prompts(extractor: GgufExtractor, texts: Sequence[Prompt]) -> dict[int, list[Prompt]]:
    """Prompts of about 128 to 1024 tokens, by their number of tokens."""
    prompts = {}
    for wanted in (128, 256, 512, 768, 1024):
        words: list[str] = []
        n = 0
        for prompt in [p for _ in range(64) for p in texts]:
            longer = Prompt(" ".join([*words, prompt.text]))
            n_longer = extractor.length(longer)
            if n_longer > min(wanted, extractor.n_cells - 1):
                break
            words, n = [longer.text], n_longer
        if words:
            prompts[n] = [Prompt(words[0])]
    return prompts
