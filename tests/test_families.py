"""Tiny random models of the families that people own, checked by the same code: what holds of all
of them of every one, and everything of one of each kind. The rest is for the matrix:
``python -m tests.tiny.matrix``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import FAMILIES, UNSTEERABLE, Family
from tiny.checks import RUNTIME, NotHere
from tiny.commands import REFUSALS
from tiny.subject import Subject

from mars_gguf.errors import ModelError

ROOT = Path(__file__).parent.parent
CORE = ("probe", "closed gate", "open gate", "modality", "heard")
KINDS = {
    "dense": "llava-hf",
    "dense, of strings": "llava-phi3",
    "experts": "qwen3vlmoe",
    "hybrid": "qwen35",
    "recurrent": "mamba2",
    "M-RoPE": "qwen2vl",
    "cut into slices": "minicpmv",
    "non-causal": "gemma4-e",
    "text alone": "granite-hybrid",
}
PAIRS = [
    (name, check)
    for name in FAMILIES
    for check in RUNTIME
    if check in CORE or name in KINDS.values()
]
PAIRS += [(name, "kept turns") for name in ("internvl-qwen3", "smolvlm", "gemma4")]
# One of each kind is tried by all who run the tests.
QUICK = ("llava-phi3", "qwen2vl", "qwen35", "gemma3", "minicpmv")
CASES = [
    pytest.param(name, check, id=f"{name}-{check}",
                 marks=[] if name in QUICK and check in CORE else pytest.mark.slow)
    for name, check in PAIRS
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def may_lack(family: Family) -> set[str]:
    """The checks for which there may be nothing to check."""
    lacking = {"cvec"} if family.hybrid else set()
    lacking |= {"modality", "kept turns", "pictures apart"} if family.text_only else set()
    return lacking | ({"q8_0 cache"} if family.name == "mamba2" else set())


@pytest.mark.parametrize(("name", "check"), CASES)
def test_what_is_promised_holds(name: str, check: str, place: Path) -> None:
    family = FAMILIES[name]
    try:
        RUNTIME[check](Subject.of(family, place))
    except NotHere:
        assert check in may_lack(family)
    except ModelError as error:
        # Pixtral's pictures and NaN in memory that llama.cpp does not write (see conftest.py): a
        # new process has none.
        assert "NaN or infinite" in str(error)
        assert matrix(name, "--check", check).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("check", REFUSALS)
@pytest.mark.parametrize("name", UNSTEERABLE)
def test_what_gives_nothing_to_hold_is_refused(name: str, check: str, place: Path) -> None:
    REFUSALS[check](Subject.of(UNSTEERABLE[name], place))


def test_of_each_kind_there_is_one() -> None:
    has = {kind: FAMILIES[name] for kind, name in KINDS.items()}
    assert has["experts"].experts and has["hybrid"].hybrid and has["recurrent"].hybrid
    assert has["M-RoPE"].mrope and has["cut into slices"].sliced and has["non-causal"].non_causal
    assert has["text alone"].text_only
    assert {family.forms for family in has.values()} == {"strings", "parts", "both"}
    dense = has["dense"]
    assert not (dense.experts or dense.hybrid or dense.mrope or dense.sliced or dense.non_causal)


# The matrix --------------------------------------------------------------------------------------


def matrix(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.tiny.matrix", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def rows(text: str) -> dict[str, list[str]]:
    """The rows of tables, by their first cell."""
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
             for line in text.splitlines() if line.startswith("| ")]  # fmt: skip
    return {first: rest for first, *rest in cells if first not in ("family", "---")}


def between_markers(name: str) -> str:
    text = (ROOT / "docs/FAMILIES.md").read_text("utf-8")
    return text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]


@pytest.mark.slow
def test_the_matrix_runs_what_is_asked_and_goes_on_from_what_is_kept(tmp_path: Path) -> None:
    kept = tmp_path / "results.jsonl"
    asked = ["phi4", "plamo2", "--check", "heard", "refused when loaded", "--keep", str(kept)]
    first = matrix(*asked)
    assert first.returncode == 0, first.stderr
    found = rows(first.stdout)
    assert set(found) == {"phi4", "plamo2"}
    assert found["phi4"][:2] == ["phi3", "phi4"] and found["phi4"][-1] == "yes"
    before = kept.read_bytes()
    assert matrix(*asked).stdout == first.stdout
    assert kept.read_bytes() == before


def test_a_check_that_fails_is_a_cell_with_its_reason(tmp_path: Path) -> None:
    from tiny.matrix import outcome

    failed = outcome(Subject.of(UNSTEERABLE["cogvlm"], tmp_path), "closed gate")
    assert failed["outcome"] == "no"
    assert failed["why"].startswith("ModelError") and "correlate" in failed["why"]


def test_the_table_names_exactly_the_families_that_there_are() -> None:
    named = re.findall(r"([\w.-]+) \([\w, .-]+\)", between_markers("families"))
    assert sorted(named) == sorted(FAMILIES | UNSTEERABLE)
