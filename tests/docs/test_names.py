"""The lists in the pages: every setting, command and arm that the code has is in its page."""

from __future__ import annotations

import re
import runpy
from importlib.metadata import metadata

import pytest
from pages import PAGES, ROOT, TOP

from mars_gguf.chat.terminal import COMMANDS
from mars_gguf.evaluate.arms import ALL
from mars_gguf.vectors.format import OLDER, VERSION

DOCS = ROOT / "docs"


def test_the_server_page_lists_every_setting_of_its_own() -> None:
    settings = pytest.importorskip("mars_gguf.server.settings")
    page = (DOCS / "SERVER.md").read_text("utf-8")
    for group in (settings.ModelSettings, settings.ServerSettings):
        for name in group.__annotations__:
            assert f"`{name}`" in page, name


def test_the_chat_page_lists_every_command() -> None:
    page = (DOCS / "CHAT.md").read_text("utf-8")
    assert all(name.split()[0] in page for name in COMMANDS)


def test_the_evaluation_page_lists_every_arm() -> None:
    page = (DOCS / "EVALUATION.md").read_text("utf-8")
    numbered = {"random-2": "`-2`", "random-3": "`-3`"}
    assert all(numbered.get(name, f"`{name}`") in page for name in ALL)


def test_the_page_of_the_vector_file_lists_every_version() -> None:
    page = (DOCS / "VECTOR_FILE.md").read_text("utf-8")
    versions = [int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert versions == [*OLDER, VERSION]


def test_every_extra_that_a_document_names_is_there() -> None:
    text = "".join(page.read_text("utf-8") for page in [*TOP, *PAGES])
    named = {extra for found in re.findall(r"mars-gguf\[([\w,]+)\]", text)
             for extra in found.split(",")}  # fmt: skip
    assert (
        {"server", "video"} <= named <= set(metadata("mars-gguf").get_all("Provides-Extra") or [])
    )


def test_the_page_of_the_architecture_draws_the_house_that_its_test_holds() -> None:
    rooms = runpy.run_path(str(ROOT / "tests/test_house.py"))["ROOMS"]
    page = (DOCS / "ARCHITECTURE.md").read_text("utf-8")
    drawn = re.findall(r"^\d  (\S+(?:  ?\S+)*)", page, re.MULTILINE)
    lines = [set(re.split(r" {2,}", line)) for line in drawn]
    assert [set(room) - {"__init__"} for room in rooms] == lines[::-1]


def test_the_page_of_the_architecture_names_files_that_are_there_and_all_of_the_runtime() -> None:
    page = (DOCS / "ARCHITECTURE.md").read_text("utf-8")
    named = {name.rpartition("/")[2] for name in re.findall(r"[\w/]+\.(?:py|c)\b", page)}
    files = {path.name for path in (ROOT / "mars_gguf").rglob("*")} | {"test_house.py"}
    assert named <= files, named - files
    runtime = {path.name for path in (ROOT / "mars_gguf/runtime").glob("*.py")} - {"__init__.py"}
    assert runtime <= named, runtime - named
