"""Files of a benchmark, and the media that they name."""

from __future__ import annotations

from pathlib import Path

import pytest
from suite_files import as_json

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.suites import load_suite


@pytest.mark.parametrize("name", ["", ".", "/", "..", "../7.mp4"])
def test_a_name_of_a_video_that_is_no_file_below_is_a_problem(tmp_path: Path, name: str) -> None:
    row = {"question": "How?", "video_path": name, "category": "S2"}
    path = as_json(tmp_path / "harmful_data.json", [row])
    with pytest.raises(MarsError, match="leads out of the suite's folder"):
        load_suite(f"video-safetybench:{path}")
