"""The converter as a library: models are loaded by what they are, and what was measured is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import few_prompts
from models import DEMO, DEMO_MMPROJ
from templates import with_template
from thinking import ALWAYS, write_likely

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
from mars_gguf.convert.extract_gguf import GgufSession
from mars_gguf.convert.extractor import Observation, Opening
from mars_gguf.convert.resuming import ResumeFile
from mars_gguf.errors import MarsError
from mars_gguf.vectors import read_vector

ONE_THREAD = GgufOptions(n_threads=1)
BLOCKS = Calibration(layers=(5, 6))


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    """Some of the shipped model's own."""
    return Prompts(**few_prompts(tmp_path, 60), contexts=False)


def converted(prompts: Prompts, **more: Any) -> Conversion:
    return convert(DEMO, prompts=prompts, calibration=BLOCKS, options=ONE_THREAD, **more)


def test_a_conversion_writes_vector_card_and_plot_where_it_is_told(
    prompts: Prompts, tmp_path: Path
) -> None:
    made = converted(prompts)
    written = made.write(tmp_path / "new" / "v.gguf")
    assert [path.name for path in written] == ["v.gguf", "v.md", "v.png"]
    assert sorted((tmp_path / "new").iterdir()) == written
    found = read_vector(written[0])
    assert (found.layer, found.source) == (made.vector.layer, made.vector.source)
    with pytest.raises(MarsError, match="found no path to write to"):
        made.write()


def test_a_direction_measured_elsewhere_is_never_written_over(
    prompts: Prompts, tmp_path: Path
) -> None:
    own, *_ = converted(prompts).write(tmp_path / "own.gguf")
    stock = tmp_path / "stock.gguf"
    stock.write_bytes(own.read_bytes().replace(b"mars.version", b"mars.ignored"))
    given = read_artefact(stock)
    with pytest.raises(MarsError, match=r"stock\.gguf: this is the input itself"):
        convert(DEMO, prompts=prompts, options=ONE_THREAD, direction=given, output=stock)
    with pytest.raises(MarsError, match=r"is of block \d alone"):
        converted(prompts, direction=given)


def test_what_was_measured_is_kept_until_the_vector_is_written_and_known_by_its_code(
    prompts: Prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    observe = GgufSession.observe

    def counted(self: GgufSession, *given: Any) -> Any:
        seen.append(len(self.prompts))
        return observe(self, *given)

    monkeypatch.setattr(GgufSession, "observe", counted)
    output, kept = tmp_path / "v.gguf", tmp_path / "v.measured"
    first = converted(prompts, output=output)
    n_prompts = sum(seen)
    seen.clear()
    again = converted(prompts, output=output)
    assert n_prompts > 100 and not seen
    assert again.vector.calibration == first.vector.calibration
    monkeypatch.setattr(conversion, "code_sha256", lambda: "of other code")
    again = converted(prompts, output=output)
    assert sum(seen) == n_prompts and kept.exists()
    again.write()
    assert output.exists() and not kept.exists()


def test_after_an_error_of_measuring_nothing_is_kept_and_before_one_all(
    prompts: Prompts, tmp_path: Path
) -> None:
    output, kept = tmp_path / "v.gguf", tmp_path / "v.measured"
    same = Prompts(harmful=prompts.harmful, harmless=prompts.harmful, contexts=False)
    with pytest.raises(MarsError, match="the same mean hidden state"):
        converted(same, output=output)
    assert not kept.exists()
    ResumeFile(kept, "job").keep({"key": Observation(np.zeros(3, np.float32), 1, Opening(1, ""))})
    with pytest.raises(MarsError, match="reasoning_budget is of thoughts"):
        convert(DEMO, prompts=prompts, options=GgufOptions(n_thought=9), output=output)
    assert ResumeFile(kept, "job").find(["key"])
    kept.write_text("a shopping list, of some length " * 99)
    with pytest.raises(MarsError, match="v.measured: cannot be used to keep what is measured"):
        converted(prompts, output=output)
    assert kept.read_text().startswith("a shopping list")


def test_what_was_measured_of_a_checkpoint_is_of_its_type_its_revision_and_its_files(
    tmp_path: Path,
) -> None:
    loaded: Any = SimpleNamespace(backend="transformers", fingerprint="of no weights")

    def key(**options: Any) -> str:
        given = (Prompts(), CheckpointOptions(**options), None)
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
        ({"options": CheckpointOptions()}, "a GGUF model, found CheckpointOptions"),
        ({"model": "ORG/NAME", "options": ONE_THREAD}, "ORG/NAME: a transformers model, found Gg"),
        ({"model": "ORG/NAME", "mmproj": DEMO_MMPROJ}, "--mmproj goes with GGUF models"),
        ({"quantization": "F16"}, "found quantization 'Q4_K_M', the recipe says 'F16'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(given: dict[str, Any], message: str) -> None:
    model, few = given.pop("model", DEMO), Prompts(probes=8, image_size=32)
    with pytest.raises(MarsError, match=message):
        convert(model, prompts=few, **given)


def test_any_file_is_for_llama_cpp_and_a_directory_or_a_hub_id_for_transformers(
    tmp_path: Path,
) -> None:
    assert conversion.is_gguf(DEMO) and conversion.is_gguf("no/such/MODEL.GGUF")
    assert not conversion.is_gguf(str(tmp_path)) and not conversion.is_gguf("ORG/NAME")


def test_how_prompts_are_written_is_said_where_the_model_does_not_say_it(tmp_path: Path) -> None:
    said: list[str] = []
    plain = with_template(tmp_path / "plain.gguf", None)
    thinking, _ = write_likely(tmp_path, "</think>", ALWAYS)
    for model, options in (
        (plain, GgufOptions(n_threads=1)),
        (plain, GgufOptions(n_threads=1, chat_handler="chatml")),
        (thinking, GgufOptions(n_threads=1)),
        (thinking, GgufOptions(n_threads=1, reasoning="off")),
    ):
        job = conversion._Job(model, None, Prompts(), options, None)
        job.load(said.append, verbose=False).close()
    assert said == [
        "the model has no chat template: prompts are written as ChatML. --chat-handler chooses "
        "another way.",
        "--reasoning answer, as the chat template suggests",
    ]


def test_the_package_is_imported_without_what_only_some_models_need() -> None:
    code = (
        "import sys; from mars_gguf.convert import *; import mars_gguf.convert.__main__; "
        "print([m for m in ('llama_cpp', 'torch', 'transformers', 'matplotlib') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
