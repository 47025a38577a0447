"""What a whole conversion costs, against llama.cpp's own work on all of its prompts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mars_gguf.bench.extraction import Limit
from mars_gguf.bench.figures import Aim, Figure, interleaved, ratios, timed
from mars_gguf.bench.processes import Processes
from mars_gguf.convert import __main__ as command
from mars_gguf.convert import pipeline
from mars_gguf.convert.extract_gguf import GgufExtractor, Session
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
    with tempfile.TemporaryDirectory() as folder:
        yield compared(whole.convert_arguments(Path(folder) / "v.gguf"), whole.subject.reading)


def compared(arguments: Sequence[str], reading: dict[str, Any]) -> Figure:
    """The figure of a conversion with these arguments, once: it takes minutes. ``reading``: how
    the model is opened."""
    job, found = command.prepare(command.parser().parse_args(arguments)), figure()
    extractor, limit = (kind(job.model, job.mmproj, **reading) for kind in (Recorded, Limit))
    assert isinstance(extractor, Recorded) and isinstance(limit, Limit)
    try:
        for one in (extractor, limit):
            command.make_room(one, job)
        convert = partial(
            pipeline.convert, extractor, job.contrast, job.neutral, job.options,
            source={}, contexts=job.contexts, progress=False,
        )  # fmt: skip
        found.values = interleaved({"conversion": timed(convert)}, 1, warmup=0)
        prompts = list(extractor.asked.values())
        found.values |= interleaved({"llama.cpp": lambda: limit.run(prompts)}, 1, warmup=0)
    finally:
        limit.close()
        extractor.close()
    found.samples = ratios(found.values["conversion"], found.values["llama.cpp"])
    found.note = (
        f"once, {len(prompts)} prompts, {limit.timed.n_tokens} tokens: "
        f"{found.values['conversion'][0]:.0f} s, of which llama.cpp's prefill and encoding take "
        f"{found.values['llama.cpp'][0]:.0f} s; the rest are replies, plain and forced"
    )
    return found
