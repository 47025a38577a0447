from __future__ import annotations

import argparse
import io
import sys

import pytest

from mars_gguf.console import command
from mars_gguf.errors import MarsError, ModelError, VectorError
from mars_gguf.options import add_model_arguments, llama_options


@pytest.mark.parametrize("kind", [MarsError, VectorError, ModelError])
def test_bad_input_ends_with_its_message_and_exit_code_2(kind, capsys):
    with pytest.raises(SystemExit) as ended, command():
        raise kind("found this,\nexpected that")
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "error: found this,\nexpected that\n")


def test_an_interrupt_ends_with_exit_code_130(capsys):
    with pytest.raises(SystemExit) as ended, command():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "\ninterrupted\n")


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), command():
        print(1 / 0)


def test_what_goes_well_ends_quietly(capsys):
    with command():
        print("done")
    assert capsys.readouterr() == ("done\n", "")


def test_a_message_that_quotes_a_file_cannot_steer_the_terminal(capsys):
    with pytest.raises(SystemExit), command():
        raise MarsError("key \x1b[2Jmars\x9b\r\x07 ü 模\nexpected that")
    assert capsys.readouterr().err == "error: key \\x1b[2Jmars\\x9b\\r\\x07 ü 模\nexpected that\n"


def test_what_standard_output_cannot_show_is_replaced(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    with command():
        print("crème")
    assert written.getvalue() == b"cr?me\n"


def test_the_options_of_a_model_are_those_of_llama_cpp():
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    assert llama_options(parser.parse_args(["-ngl", "all"]))["n_gpu_layers"] == -1
    assert llama_options(parser.parse_args(["-ngl", "7"]))["n_gpu_layers"] == 7
    assert llama_options(parser.parse_args(["-t", "512"]))["n_threads"] == 512
    with pytest.raises(SystemExit):
        parser.parse_args(["-t", "513"])
