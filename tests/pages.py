"""The documents of the repository, their links and their tables."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TOP = [ROOT / f"{name}.md" for name in ("README", "SECURITY", "CONTRIBUTING", "CHANGELOG")]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def links(page: Path) -> list[Path]:
    """The files of the repository that a page links to."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    return [(page.parent / t).resolve() for t in targets if t and ":" not in t]


def rows(table: str) -> list[list[str]]:
    """The rows of a Markdown table, the head among them."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def table_after(page: Path, marker: str) -> list[list[str]]:
    """The rows, without head, of the table that follows ``<!-- marker -->``."""
    text = page.read_text("utf-8").partition(f"<!-- {marker} -->\n")[2]
    return rows(text.partition("\n\n")[0])[2:]
