"""The pages of docs/: how they hang together, and the site that is made of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, README, ROOT, TOP, links


@pytest.mark.parametrize("page", [*TOP, *PAGES], ids=lambda page: page.stem)
def test_every_link_leads_to_a_file(page: Path) -> None:
    missing = [str(target) for target in links(page) if not target.exists()]
    assert not missing


def test_every_page_can_be_reached_from_the_readme_and_the_readme_from_every_page() -> None:
    assert {*TOP[1:], *PAGES} <= set(links(README))
    for page in [*TOP[1:], *PAGES]:
        assert README in links(page), page.name


def test_every_report_can_be_reached_from_a_page() -> None:
    linked = {target for page in [*TOP, *PAGES] for target in links(page)}
    reports = set((ROOT / "docs/evaluation").rglob("*.md"))
    assert reports <= linked


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs pip install 'mars-gguf[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert 'href="SECURITY.html"' in (tmp_path / "index.html").read_text("utf-8")
