"""The plot of a conversion of a model of numpy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from toys import toy_measurement

from mars_gguf.convert.plot import write_plot


def test_the_plot_is_a_picture_with_something_on_it(tmp_path: Path) -> None:
    write_plot(toy_measurement(), tmp_path / "v.png")
    shown = Image.open(tmp_path / "v.png").convert("RGB")
    colours = np.unique(np.asarray(shown).reshape(-1, 3), axis=0)
    assert min(shown.size) > 500 and len(colours) > 50
