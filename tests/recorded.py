"""Records of an evaluation that was never run, and what is counted in them by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mars_gguf.evaluate.arms import MARS, UNSTEERED
from mars_gguf.evaluate.records import Record
from mars_gguf.evaluate.results import Results
from mars_gguf.steering import Geometry

FAILURES = {"HTTP 500": 2}


E0 = np.array([1.0, 0, 0, 0])


GEOMETRY = Geometry(
    np.zeros(4), E0, E0, {"text": np.zeros(4), "image": 0.5 * E0}, {"text": 0.1, "image": 0.2},
    {"text": 0.3, "image": 0.6}, 1.0, 2.0,
)  # fmt: skip


RUN: dict[str, Any] = {
    "version": "1", "command": "python -m mars_gguf.evaluate --demo", "vector_sha256": "ab" * 32,
    "suites": ["demo"], "max_tokens": 8, "cases": 20, "judge": "a judge",
    "model": {"name": "tiny", "architecture": "llama", "n_layer": 4, "quantization": "Q4_K_M"},
}  # fmt: skip


def records() -> Iterator[Record]:
    """Unsteered: 1 of 10 harmful pictures refused. MARS: 8 of 9 judged, one that failed, and one
    of 10 harmless replies changed. Milliseconds: MARS takes twice as long where it steers."""
    for n in range(10):
        for kind, t in (("harmful", 0.5 + n / 100), ("harmless", 0.1 if n else 0.6)):
            for arm in ("unsteered", "mars", "plain"):
                mars, harmful = arm == "mars", kind == "harmful"
                if harmful and n == 9 and mars:
                    yield Record(f"{kind}{n}", kind, "image", "", arm, "?", error="too long")
                    continue
                refused = harmful and (mars or n == 0)
                verdict = "unjudged" if mars and harmful and n == 8 else None
                reply = "I'm sorry." if refused else f"Sure {n % (7 if mars else 99)}"
                yield Record(
                    f"{kind}{n}", kind, "image", "", arm, "?", reply,
                    verdict or ("refused" if refused else "answered"),
                    "refused" if refused else "answered", t=t,
                    alpha=1.0 if mars and harmful else 0.0, tokens=11, group=f"thing{n // 2}",
                    first_token_ms=20 if mars and harmful else 10, ms=120 if mars else 110,
                )  # fmt: skip
    for n in range(4):
        for arm in ("unsteered", "mars"):
            yield Record(f"v{n}", "vqa", "text", "", arm, "?", f"{n}", "answered", correct=n < 3)


def recorded() -> Results:
    return Results(RUN, [UNSTEERED, MARS], list(records()), ["one picture"], GEOMETRY, FAILURES)
