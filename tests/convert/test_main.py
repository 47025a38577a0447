"""The convert command: what its options choose, and that bad input ends with a message, exit code 2
and no file. Messages are tested where they are made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import convert as main
from models import DEMO, DEMO_MMPROJ

from mars_gguf.convert import Calibration, CheckpointOptions, GgufOptions, Prompts
from mars_gguf.convert.__main__ import options_for, parser
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.prompts import Prompt, builtin_contrast
from mars_gguf.convert.splits import Split
from mars_gguf.errors import MarsError
from mars_gguf.vectors import Vector, read_vector


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder of good and bad input files."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    pairs = builtin_contrast()
    harmful, harmless = (  # of one line each
        [p for p in side if "\n" not in p][:60] for side in (pairs.harmful, pairs.harmless)
    )
    for name, lines in {
        "harmful": harmful,
        "harmless": harmless,
        "odd": pairs.neutral["borderline"][:40],
        "system": ["You are terse.", "You like tea."],
        "empty": [],
        "model.txt": ["this is no model"],
    }.items():
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    (folder / "latin1").write_bytes("Wo steht die T\xfcr?\n".encode("latin-1") * 9)
    return folder


def convert(*options: str, folder: Path, output: Path) -> None:
    """Run the command; words that name an input file become its path."""
    known = {path.name for path in folder.iterdir()}
    words = [str(folder / word) if word in known else word for word in options]
    sets = [] if "--harmful" in words else ["--harmful", str(folder / "harmful")]
    sets += [] if "--harmless" in words else ["--harmless", str(folder / "harmless")]
    main([*words, "-q", "-t", "1", "-o", str(output), *sets])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.gguf"], "missing.gguf: no such file"),
        (["model.txt"], "not a GGUF file (it starts with b'this', expected b'GGUF')"),
        ([DEMO, "--mmproj", DEMO], "llama.cpp could not load this as the mmproj of the model"),
        ([DEMO, "--harmful", "empty"], "no prompts found"),
        ([DEMO, "--harmful", "harmless"], "the same mean hidden state"),
        ([DEMO, "--system-prompt", "empty"], "empty: is empty, expected a system prompt"),
        ([DEMO, "--system-prompt", "latin1"], "latin1: cannot be read as text"),
        ([DEMO, "--modality", "image"], "--modality image: this model sees no pictures"),
        ([DEMO, "--layer", "3"], "--model and --layer go with a direction measured elsewhere"),
        ([DEMO, "-m", DEMO], "--model and --layer go with a direction measured elsewhere"),
        (["-hff", "a.gguf"], "--hf-file names a file of --hf-repo: give both"),
        ([DEMO, "--chat-handler", "llava"], "argument --chat-handler: invalid choice: 'llava'"),
        (["--chat-handler", "mtmd"], "no model: give a GGUF file, a transformers model, or"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_a_message_and_nothing_written(
    options: list[str], message: str, inputs: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        convert(*options, folder=inputs, output=tmp_path / "v.gguf")
    assert ended.value.code == 2
    assert sorted(tmp_path.rglob("*")) == before
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_the_module_runs_as_a_command_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mars_gguf.convert", "missing.gguf"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "error: missing.gguf: no such file\n")
    assert not list(tmp_path.iterdir())


# What the options choose -------------------------------------------------------------------------


def asked(monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    """What the library is called with."""
    calls: list[dict[str, Any]] = []

    def convert(model: str, mmproj: str | None, **given: Any) -> None:
        calls.append({"model": model, "mmproj": mmproj} | given)
        raise MarsError("enough")

    monkeypatch.setattr("mars_gguf.convert.conversion.convert", convert)
    with pytest.raises(SystemExit):
        main(list(options))
    return calls[0]


@pytest.mark.parametrize(
    ("model", "options"), [(DEMO, GgufOptions()), ("ORG/NAME", CheckpointOptions())]
)
def test_the_defaults_of_the_command_are_those_of_the_library(
    model: str, options: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = asked(monkeypatch, model)
    assert (given["prompts"], given["calibration"]) == (Prompts(), Calibration())
    assert given["options"] == options
    assert given["output"] == f"{Path(model).stem}-mars.gguf"


def test_what_the_options_say_reaches_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ["--chat-template-kwargs", '{"enable_thinking": false}', "--chat-handler", "chatml"]
    machine = ["-ngl", "all", "--rpc", "a:1", "-t", "3"]
    given = asked(monkeypatch, "-m", DEMO, "--mmproj", DEMO_MMPROJ, *template, *machine)
    assert (given["model"], given["mmproj"]) == (DEMO, DEMO_MMPROJ)
    assert given["options"] == GgufOptions(
        "chatml", {"enable_thinking": False}, n_gpu_layers=-1, rpc_servers="a:1", n_threads=3
    )


def test_options_that_would_change_nothing_for_a_kind_of_model_are_refused() -> None:
    for model, given, said in (
        (DEMO, {"trust_remote_code": True}, "--trust-remote-code goes with transformers models"),
        (DEMO, {"dtype": "float16"}, "model.dtype goes with transformers models"),
        ("ORG/NAME", {"n_threads": 1}, "--threads goes with GGUF models, ORG/NAME is a transform"),
        ("ORG/NAME", {"n_ctx": 512}, "model.ctx_size goes with GGUF models"),
        ("ORG/NAME", {"reasoning": "answer"}, "--reasoning goes with GGUF models"),
    ):
        with pytest.raises(MarsError, match=said):
            options_for(model, given)
    assert options_for("ORG/NAME", {"reasoning": "off"}) == CheckpointOptions()


def test_the_command_has_few_options_the_common_ones_first() -> None:
    words = parser().format_help().split("where the model is:")[0]
    assert all(option in words for option in ("--output", "--quick", "--recipe"))
    own = [
        action for action in parser()._actions if action.dest != "help" and action.option_strings
    ]
    assert len(own) <= 24


# What is measured with ---------------------------------------------------------------------------


def measured(inputs: Path, output: Path, *options: str) -> Vector:
    convert(DEMO, *options, folder=inputs, output=output)
    names = sorted(path.name for path in output.parent.glob("v.*"))
    assert names == ["v.gguf", "v.md", "v.png"]
    return read_vector(output)


def counts(vector: Vector, name: str) -> list[int]:
    return [int(str(vector.calibration[f"prompts.{name}.{part}"])) for part in Split._fields]


def test_neutral_text_of_ones_own_is_measured_with_and_an_error_leaves_the_older_vector(
    inputs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "v.gguf"
    plain = measured(inputs, output)
    assert counts(plain, "harmful") == counts(plain, "neutral.text") == [30, 12, 18]
    odd = measured(inputs, output, "--neutral-text", "odd")
    assert counts(odd, "neutral.text") == [30 + 12, 12 + 8, 18 + 20]
    assert odd.source["prompts_sha256"] != plain.source["prompts_sha256"]
    before = output.read_bytes()
    with pytest.raises(SystemExit):
        convert(DEMO, "--harmful", "harmless", folder=inputs, output=output)
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("v.*")) == ["v.gguf", "v.md", "v.png"]


def test_quick_measures_on_a_quarter_and_under_a_system_prompt_it_stands_before_everything(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[dict[str, Any]]] = []
    render = GgufExtractor.cached

    def cached(self: GgufExtractor, prompt: Prompt, number: int = 0) -> Any:
        shown.append(prompt.messages)
        return render(self, prompt, number)

    monkeypatch.setattr(GgufExtractor, "cached", cached)
    system = {"role": "system", "content": "You are terse.\nYou like tea."}
    vector = measured(inputs, tmp_path / "v.gguf", "--quick", "--system-prompt", "system")
    assert sum(counts(vector, "harmful")) == 15
    assert "quarter" in str(vector.source["quick"])
    assert vector.system_prompt == system["content"]
    assert all(messages[0] == system for messages in shown)
