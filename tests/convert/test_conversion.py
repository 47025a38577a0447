"""The converter as a library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import convert as command
from models import DEMO, DEMO_MMPROJ

from mars_gguf.convert import (
    Calibration,
    CheckpointOptions,
    Conversion,
    GgufOptions,
    Prompts,
    conversion,
    convert,
    read_artefact,
)
from mars_gguf.convert.extract_gguf import Session
from mars_gguf.convert.extractor import Reply, Seen
from mars_gguf.convert.resuming import ResumeFile
from mars_gguf.demo_model import FOLDER
from mars_gguf.errors import MarsError
from mars_gguf.vectors import read_vector

ONE_THREAD = GgufOptions(n_threads=1)
BLOCKS = Calibration(layers=(5, 6))


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    """Some of the shipped model's own."""
    for name in ("harmful", "harmless"):
        lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines[:60]), encoding="utf-8")
    return Prompts(
        harmful=tmp_path / "harmful.jsonl", harmless=tmp_path / "harmless.jsonl", contexts=False
    )


def converted(prompts: Prompts, **more: Any) -> Conversion:
    return convert(DEMO, prompts=prompts, calibration=BLOCKS, options=ONE_THREAD, **more)


def test_the_library_writes_what_the_command_writes(prompts: Prompts, tmp_path: Path) -> None:
    made = converted(prompts)
    written = made.write(tmp_path / "library" / "v.gguf")
    assert [path.name for path in written] == ["v.gguf", "v.md", "v.png"]
    sets = ["--harmful", str(prompts.harmful), "--harmless", str(prompts.harmless)]
    more = ["--no-contexts", "--layers", "5-6", "-t", "1", "-q"]
    command([DEMO, "-o", str(tmp_path / "command" / "v.gguf"), *sets, *more])
    for path in written:
        assert path.read_bytes() == (tmp_path / "command" / path.name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "library").iterdir()) == sorted(
        path.name for path in written
    )
    found = read_vector(written[0])
    assert (found.layer, found.source) == (made.vector.layer, made.vector.source)
    assert made.write(tmp_path / "bare.gguf", plot=False)[1:] == [tmp_path / "bare.md"]


def test_a_direction_measured_elsewhere_is_calibrated_and_never_written_over(
    prompts: Prompts, tmp_path: Path
) -> None:
    own, *_ = converted(prompts).write(tmp_path / "own.gguf", plot=False)
    stock = tmp_path / "stock.gguf"
    stock.write_bytes(own.read_bytes().replace(b"mars.version", b"mars.ignored"))
    given = read_artefact(stock)
    made = convert(DEMO, prompts=prompts, options=ONE_THREAD, direction=given)
    assert made.vector.layer == given.layer
    assert len(str(made.vector.source["direction_sha256"])) == 64
    with pytest.raises(MarsError, match=r"stock\.gguf: this is the input itself"):
        made.write(stock)
    with pytest.raises(MarsError, match="is of block .*, there is no choice"):
        converted(prompts, direction=given)


def test_what_was_measured_is_kept_until_the_vector_is_written_and_known_by_its_code(
    prompts: Prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    observe = Session.observe

    def counted(self: Session, *given: Any) -> Any:
        seen.append(len(self.prompts))
        return observe(self, *given)

    monkeypatch.setattr(Session, "observe", counted)
    kept = tmp_path / "kept"
    first = converted(prompts, resume=kept)
    n_prompts = sum(seen)
    seen.clear()
    again = converted(prompts, resume=kept)
    assert n_prompts > 100 and not seen
    assert again.vector.calibration == first.vector.calibration
    monkeypatch.setattr(conversion, "code_sha256", lambda: "of other code")
    again = converted(prompts, resume=kept)
    assert sum(seen) == n_prompts
    again.write(tmp_path / "v.gguf", plot=False)
    assert not kept.exists()


def test_an_error_leaves_nothing_to_go_on_with(prompts: Prompts, tmp_path: Path) -> None:
    same = Prompts(harmful=prompts.harmful, harmless=prompts.harmful, contexts=False)
    with pytest.raises(MarsError, match="the same mean hidden state"):
        converted(same, resume=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_what_lies_there_stays_where_nothing_was_measured(prompts: Prompts, tmp_path: Path) -> None:
    notes, kept = tmp_path / "notes", tmp_path / "kept"
    notes.write_text("a shopping list, of some length " * 99)
    with pytest.raises(MarsError, match="notes: cannot be used to keep what is measured"):
        converted(prompts, resume=notes)
    assert notes.read_text().startswith("a shopping list")
    state = Seen(np.zeros(3, np.float32), 1, Reply(1, ""))
    ResumeFile(kept, "job").keep({"key": state})
    with pytest.raises(MarsError, match="--reasoning-budget is of thoughts"):
        convert(DEMO, prompts=prompts, options=GgufOptions(n_thought=9), resume=kept)
    assert ResumeFile(kept, "job").find(["key"])


def test_what_was_measured_of_a_checkpoint_is_of_its_type_its_revision_and_its_files(
    tmp_path: Path,
) -> None:
    loaded: Any = SimpleNamespace(backend="transformers", fingerprint="of no weights")

    def key(**options: Any) -> str:
        given = (Prompts(), Calibration(), CheckpointOptions(**options), None)
        return conversion._Job(str(tmp_path), None, *given).key(loaded)

    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    keys = [key(), key(dtype="float32"), key(revision="a1")]
    assert keys[0] == key(batch_size=1)
    weights.write_bytes(b"another")  # the folder stays as it is
    assert len({*keys, key()}) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": CheckpointOptions()}, "CheckpointOptions go with transformers models, "),
        ({"model": "ORG/NAME", "options": ONE_THREAD}, "GgufOptions go with GGUF models, ORG/NAME"),
        ({"model": "ORG/NAME", "mmproj": DEMO_MMPROJ}, "--mmproj goes with GGUF models"),
        ({"options": GgufOptions(n_thought=9)}, "--reasoning-budget is of thoughts"),
        ({"quantization": "F16"}, "found quantization 'Q4_K_M', the recipe says 'F16'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(given: dict[str, Any], message: str) -> None:
    model, few = given.pop("model", DEMO), Prompts(probes=8, image_size=32)
    with pytest.raises(MarsError, match=message):
        convert(model, prompts=few, **given)


def test_the_room_is_imported_without_what_only_some_models_need() -> None:
    code = (
        "import sys; from mars_gguf.convert import *; import mars_gguf.convert.pipeline; "
        "print([m for m in ('llama_cpp', 'torch', 'transformers', 'matplotlib') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
