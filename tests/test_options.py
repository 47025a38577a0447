from __future__ import annotations

import argparse

import pytest

from mars_gguf.options import (
    add_model_arguments,
    add_template_variables_argument,
    llama_options,
)


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    add_template_variables_argument(parser)
    return parser


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("-ngl all", "n_gpu_layers", -1),
        ("-ngl -1", "n_gpu_layers", -1),
        ("-ngl 7", "n_gpu_layers", 7),
        ("-t 512", "n_threads", 512),
        ("-c 0", "n_ctx", 0),
        ("-ub 1024", "n_batch", 1024),
    ],
)
def test_the_options_of_a_model_are_those_of_llama_cpp(parser, words, name, value):
    assert llama_options(parser.parse_args(words.split()))[name] == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-t", "513"], "argument -t/--threads: found 513, expected 1 to 512"),
        (["-t", "many"], "found 'many', expected a whole number"),
        (["-ngl", "-2"], "argument -ngl/--n-gpu-layers: found -2, expected -1 to"),
        (["-c", "-1"], "argument -c/--ctx-size: found -1, expected 0 to"),
        (["--rpc", ""], "argument --rpc: found no server, expected HOST:PORT"),
        (["--chat-handler", "none"], "argument --chat-handler: invalid choice: 'none'"),
        (["--chat-template-kwargs", "x"], "--chat-template-kwargs: found 'x', expected JSON ("),
        (["--chat-template-kwargs", "3"], "found '3', expected a JSON object, as in '{\"enable"),
    ],
)
def test_what_an_option_cannot_be_is_said_with_what_it_can(parser, words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_how_prompts_are_written_is_said_in_words_of_the_library(parser):
    words = ["--chat-handler", "chatml", "--chat-template-kwargs", '{"enable_thinking": false}']
    args = parser.parse_args([*words, "--reasoning", "thought"])
    options = llama_options(args)
    assert options["reasoning"] == "thought"
    assert options["template"] == "chatml"
    assert args.chat_template_kwargs == {"enable_thinking": False}
