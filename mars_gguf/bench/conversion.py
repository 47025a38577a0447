"""What a whole conversion costs, against llama.cpp's own work on all of its prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

from mars_gguf.bench.extraction import Limit
from mars_gguf.bench.figures import Aim, Figure, interleaved, ratios, timed
from mars_gguf.bench.processes import Processes
from mars_gguf.bench.subject import Subject
from mars_gguf.convert import pipeline
from mars_gguf.convert.choices import Calibration, Prompts
from mars_gguf.convert.extract_gguf import GgufExtractor, Session
from mars_gguf.convert.loader import make_room
from mars_gguf.convert.prompt_sets import gather
from mars_gguf.convert.prompts import Prompt

NAMES = ["conversion"]


def figure() -> Figure:
    return Figure(
        "conversion",
        "conversion, the model loaded",
        "llama.cpp's prefill of all its prompts, what they begin with once + picture encoding",
        Aim(1.3),
    )


class Recorded(GgufExtractor):
    """Keeps what it was asked. ``asked``: the prompts, each once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: dict[int, Prompt] = {}

    def sessions(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], Session]]:
        self.asked |= {id(prompt): prompt for prompt in prompts}
        return super().sessions(prompts)


def measure(
    whole: Processes,
    only: Collection[str],
    started: Callable[[str], object] = lambda name: None,
) -> Iterator[Figure]:
    """The figure, if it is named in ``only``."""
    if not set(NAMES) & set(only):
        return
    started("conversion")
    yield compared(whole.subject, whole.subject.given.prompts, Calibration())


def compared(subject: Subject, prompts: Prompts, calibration: Calibration) -> Figure:
    """The figure of a conversion with these choices, once: it takes minutes."""
    sets, found = gather(prompts, calibration.seed, sees=subject.mmproj is not None), figure()
    extractor = Recorded(subject.model, subject.mmproj, **subject.reading)
    limit = Limit(subject.model, subject.mmproj, **subject.reading)
    try:
        for one in (extractor, limit):
            make_room(one, sets, say=lambda line: None)
        convert = partial(pipeline.measure, extractor, sets, calibration, source={}, progress=False)
        found.values = interleaved({"conversion": timed(convert)}, 1, warmup=0)
        asked = list(extractor.asked.values())
        found.values |= interleaved({"llama.cpp": lambda: limit.run(asked)}, 1, warmup=0)
    finally:
        limit.close()
        extractor.close()
    found.samples = ratios(found.values["conversion"], found.values["llama.cpp"])
    found.note = (
        f"once, {len(asked)} prompts, {limit.timed.n_tokens} tokens: "
        f"{found.values['conversion'][0]:.0f} s, of which llama.cpp's prefill and encoding take "
        f"{found.values['llama.cpp'][0]:.0f} s; the rest are replies, plain and forced"
    )
    return found
