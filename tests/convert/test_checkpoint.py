"""Checkpoints of transformers: what cannot be loaded or measured ends with a message."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import LLAMA, LLAVA, TEXTS, torch, transformers  # skips them without
from commands import convert as main
from commands import recipe
from models import picture

from mars_gguf.convert.extract_transformers import TransformersExtractor
from mars_gguf.convert.prompts import Prompt
from mars_gguf.errors import ModelError
from mars_gguf.vectors import read_vector

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("offline")]


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def with_a_template_that_drops_the_user(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("hello")


def as_encoder_decoder(folder: Path) -> None:
    change_config(folder, is_encoder_decoder=True)


def with_code_of_its_own(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    change_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.Config"})


def with_damaged_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@LLAMA
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_weights, "no weights in this directory, expected \\*.safetensors"),
        (without_config, "no config.json in this directory"),
        (without_template, "no chat template, expected a chat model"),
        (with_a_template_that_drops_the_user, "cannot be used: .*loses the text 'Is this"),
        (as_encoder_decoder, "an encoder-decoder model"),
        (with_code_of_its_own, "could not load it as AutoConfig"),
        (with_damaged_weights, "could not load it as AutoModelForCausalLM"),
    ],
)
def test_checkpoints_that_cannot_be_measured_are_refused(
    checkpoint: str, damage: Any, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    with pytest.raises(ModelError, match=message):
        TransformersExtractor(str(folder))


@LLAMA
def test_a_forward_pass_that_fails_ends_the_command_with_advice_and_no_file(
    checkpoint: str, sets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def forward(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    with pytest.raises(SystemExit) as ended:
        main([checkpoint, "-o", str(tmp_path / "v.gguf"), "-q", *sets])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert re.search(r"failed on 8 x \d+ tokens \(CUDA out of memory. Tried to allo", error)
    assert "try a recipe with model.dtype" in error
    assert not (tmp_path / "v.gguf").exists()


@LLAMA
def test_the_revision_of_a_model_from_the_hub_is_recorded(
    checkpoint: str, sets: list[str], tmp_path: Path
) -> None:
    revision = "0123456789abcdef" * 2 + "01234567"
    shutil.copytree(checkpoint, tmp_path / "models--tiny--llama" / "snapshots" / revision)
    prompts = {name[2:]: file for name, file in zip(sets[::2], sets[1::2], strict=True)}
    path = recipe(tmp_path, model={"hub": "tiny/llama", "revision": revision}, prompts=prompts)
    # `checkpoints` makes transformers work beside any torchvision.
    code = "import checkpoints; from mars_gguf.convert.__main__ import main; main()"
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    cached = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-c", code, "--recipe", path, "-q"]
    subprocess.run(command, check=True, env=os.environ | cached)
    assert read_vector(tmp_path / "v.gguf").source["revision"] == revision


@LLAVA
def test_a_model_that_sees_but_lost_its_processor_is_measured_on_text_if_that_is_asked(
    checkpoint: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "processor_config.json").unlink()
    with pytest.raises(ModelError, match=r"as AutoProcessor: .* use --modality text"):
        TransformersExtractor(str(folder))
    extractor = TransformersExtractor(str(folder), images=False)
    assert not extractor.sees_images
    states = next(extractor.sessions([Prompt(TEXTS[0])]))[1].observe()[0]
    whole = TransformersExtractor(checkpoint)
    expected = next(whole.sessions([Prompt(TEXTS[0])]))[1].observe()[0]
    np.testing.assert_array_equal(states, expected)
    with pytest.raises(ModelError, match="no processor"):
        next(extractor.sessions([Prompt(TEXTS[0], (picture(1),))]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file or directory, and not a hub id"),
        ("nobody/nothing-of-this-name", "could not load it as AutoConfig"),
    ],
)
def test_names_of_nothing_are_refused(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        TransformersExtractor(name)
