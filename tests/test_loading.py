"""The model that a command's options name."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import models
import pytest
import templates

from mars_gguf import demo_model
from mars_gguf.loading import load_steered
from mars_gguf.options import add_model_arguments, model_files
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.vectors import read_vector, write_vector

FILES = ["-m", models.DEMO, "--mmproj", models.DEMO_MMPROJ, "--vector", str(demo_model.VECTOR)]


def load(*options: str) -> SteeredLlama:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    args = parser.parse_args(["-t", "1", "-c", "512", *options])
    return load_steered(args, model_files(args))


def test_a_context_longer_than_the_model_was_trained_for_is_said(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for size, said in ((2048, 1), (1024, 0)):
        load(*FILES, "-c", str(size)).close()
        assert capfd.readouterr().err.count("better give --ctx-size 1024") == said


def test_options_say_how_prompts_are_written() -> None:
    plain = load("--demo")
    assert (plain.template.name, plain.template.kwargs) == ("mtmd", {})
    plain.close()
    # The vector was made for the model's own template.
    llama = load("--demo", "--force", "--chat-handler", "llava-1-5")
    assert llama.template.name == "llava-1-5"
    llama.close()


def test_prompts_keep_the_variables_that_the_vector_was_measured_with(tmp_path: Path) -> None:
    vector = read_vector(demo_model.VECTOR)
    model = replace(vector.model, chat_template_kwargs='{"a": [1]}')
    write_vector(replace(vector, model=model), tmp_path / "vector.gguf")
    llama = load(*FILES, "--vector", str(tmp_path / "vector.gguf"))
    assert llama.template.kwargs == {"a": [1]}
    llama.close()


def test_a_model_without_a_chat_template_is_said_unless_another_way_was_chosen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = templates.with_template(tmp_path / "model.gguf", None)
    write_vector(models.vector(model), tmp_path / "vector.gguf")
    files = ["-m", model, "--vector", str(tmp_path / "vector.gguf")]
    capfd.readouterr()
    for options, said in (([], 1), (["--chat-handler", "chatml"], 0)):
        llama = load(*files, *options)
        prompt = llama.template.render([models.user("Hello.")]).text
        assert prompt == "<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n"
        llama.close()
        assert capfd.readouterr().err.count("no chat template") == said
