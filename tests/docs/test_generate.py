"""The pages that are made from the code: they are what the code says today."""

from __future__ import annotations

import runpy

import pytest
from pages import ROOT

import mars_gguf

pytest.importorskip("griffe", reason="needs pip install 'mars-gguf[docs]'")
PAGES = runpy.run_path(str(ROOT / "docs/generate.py"))["PAGES"]


@pytest.mark.parametrize("name", list(PAGES))
def test_a_generated_page_is_what_the_code_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # set by the generator, and put back
    kept = (ROOT / "docs" / name).read_text("utf-8")
    # Lines break elsewhere in the help of other versions of Python.
    assert PAGES[name]().split() == kept.split(), "stale: run python docs/generate.py"


def test_the_page_of_the_api_has_all_that_the_package_offers() -> None:
    page = (ROOT / "docs/API.md").read_text("utf-8")
    for name in mars_gguf.__all__:
        assert f"\n### {name}\n" in page or f"`mars_gguf.{name}`" in page, name
