"""Small files of suites, as benchmarks have them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from mars_gguf.evaluate.suites import Suite


def table(path: Path, columns: str, *lines: Sequence[object]) -> Path:
    """A CSV file with these columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns.split(","))
        writer.writerows(lines)
    return path


def as_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def own(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (20, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def filmed(path: Path, frames: Iterable[np.ndarray], rate: int = 4) -> Path:
    """A film of pictures, ``[height, width, 3]``, of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        for n, pixels in enumerate(frames):
            if n == 0:
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    return path


def film(path: Path, seconds: int = 3, rate: int = 8) -> Path:
    """A video that grows steadily from black to white."""
    last = rate * seconds - 1
    greys = (np.full((48, 64, 3), 255 * n // last, np.uint8) for n in range(last + 1))
    return filmed(path, greys, rate)


def facts(suite: Suite) -> list[tuple[str, str, str, str, str]]:
    return [(c.id, c.kind, c.modality, c.prompt, c.category) for c in suite.cases]


def groups(suite: Suite) -> list[str]:
    return [case.group for case in suite.cases]
