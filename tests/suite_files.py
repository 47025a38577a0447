"""Small files of suites, as benchmarks have them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
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


def film(path: Path, seconds: int = 3) -> Path:
    """A video that grows from black to white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(8 * seconds):
            grey = np.full((48, 64, 3), 255 * n // (8 * seconds - 1), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey)))
        container.mux(stream.encode())
    return path


def facts(suite: Suite) -> list[tuple[str, str, str, str, str]]:
    return [(c.id, c.kind, c.modality, c.prompt, c.category) for c in suite.cases]


def groups(suite: Suite) -> list[str]:
    return [case.group for case in suite.cases]


def colours(suite: Suite) -> list[object]:
    return [case.pictures()[0].getpixel((0, 0)) for case in suite.cases]
