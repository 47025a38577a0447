"""Puts pages into the site that live elsewhere in the repository, beside what they are about.

Pages link to one another as files of the repository do, so that the links also work on a code
host. On the site, docs/ is the root, and a file outside of it stands where its path says:
``../SECURITY.md`` of a page in docs/ becomes ``SECURITY.md``.
"""

from __future__ import annotations

import re
from os.path import relpath
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OUTSIDE = (
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "vectors/demo.md",
    "vectors/demo.png", "mars_gguf/demo_model/MODEL_CARD.md", "mars_gguf/convert/data/README.md",
    "mars_gguf/evaluate/data/CARD.md", "examples/steer.py", "examples/convert_model.py",
    "examples/ask_server.py", "Dockerfile", "compose.yaml",
    *(f"examples/integrations/{name}" for name in (
        "llama-swap.yaml", "litellm.yaml", "mars_guardrail.py", "open-webui.env", "librechat.yaml",
    )),
)  # fmt: skip
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def in_site(path: str) -> str:
    """The place on the site of a file of the repository."""
    return path.removeprefix("docs/")


def in_repository(path: str) -> str:
    """The place in the repository of a file of the site."""
    return path if path in OUTSIDE else f"docs/{path}"


def on_files(files: Any, config: Any) -> Any:
    for path in OUTSIDE:
        file = File.generated(config, in_site(path), abs_src_path=str(ROOT / path))
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page, its links to files of the repository made links of the site."""
    here = in_repository(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        target, hash, anchor = found[2].partition("#")
        if not target or ":" in target:
            return found[0]
        path = normpath(join(dirname(here), target))
        link = relpath(in_site(path), dirname(page.file.src_uri) or ".").replace("\\", "/")
        return f"{found[1]}{link}{hash}{anchor}{found[3]}"

    return LINK.sub(moved, markdown)
