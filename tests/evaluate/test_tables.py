from __future__ import annotations

from pathlib import Path

import pytest

from mars_gguf.errors import MarsError
from mars_gguf.evaluate import tables
from mars_gguf.evaluate.suites import load_suite


def test_a_file_beyond_the_bound_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with path.open("wb") as file:
        file.truncate(tables.MAX_BYTES + 1)
    with pytest.raises(MarsError, match="larger than"):
        load_suite(str(path))
