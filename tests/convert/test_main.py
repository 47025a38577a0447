"""The convert command on GGUF models: bad input ends with a message, exit code 2 and no file."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import convert as main
from models import DEMO, DEMO_MMPROJ, random_llama

from mars_gguf.console import printable
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.prompts import Prompt, builtin_contrast
from mars_gguf.convert.splits import Split
from mars_gguf.convert.vector_files import claimed
from mars_gguf.errors import ModelError
from mars_gguf.runtime.template import CHATML
from mars_gguf.vectors import Vector, read_vector

VECTOR = Path(__file__).parents[2] / "vectors" / "demo.gguf"


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
        "same": harmless,
        "odd": pairs.neutral["borderline"][:40],
        "system": ["You are terse.", "You like tea."],
        "seven": harmful[:7],
        "repeated": pairs.harmful[:1] * 20,
        "empty": [],
        "comments": ["# nothing", "", "# else"],
        "model.txt": ["this is no model"],
        "broken.jsonl": ['{"prompt": 3}'],
    }.items():
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    (folder / "latin1").write_bytes("Wo steht die T\xfcr?\n".encode("latin-1") * 9)
    (folder / "cut.gguf").write_bytes(Path(DEMO).read_bytes()[:100_000])
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"\x89PNG no picture")
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
        (["cut.gguf"], "llama.cpp could not load this model"),
        (["pictures"], "--threads goes with GGUF models, "),
        ([DEMO, "--dtype", "bfloat16"], "--dtype goes with transformers models, "),
        ([DEMO, "--batch-size", "4"], "--batch-size goes with transformers models, "),
        ([DEMO, "--revision", "main"], "--revision goes with transformers models, "),
        ([DEMO_MMPROJ], "llama.cpp could not load this model"),
        ([DEMO, "--mmproj", "missing.gguf"], "missing.gguf: no such file"),
        ([DEMO, "--mmproj", "model.txt"], "not a GGUF file"),
        ([DEMO, "--mmproj", DEMO], "llama.cpp could not load this as the mmproj of the model"),
        ([DEMO, "--harmful", "empty"], "no prompts found"),
        ([DEMO, "--harmless", "comments"], "no prompts found"),
        ([DEMO, "--harmful", "seven"], "found 7 different prompts, expected at least 8"),
        ([DEMO, "--harmless", "repeated"], "found 1 different prompts, expected at least 8"),
        ([DEMO, "--harmful", "broken.jsonl"], "broken.jsonl, line 1: 'prompt' is 3"),
        ([DEMO, "--harmful", "latin1"], "not UTF-8"),
        ([DEMO, "--harmful", "nothing-here"], "nothing-here: no such file"),
        ([DEMO, "--harmful", "same"], "the same mean hidden state"),
        ([DEMO, "--layers", "x"], "--layers: found 'x', expected FIRST-LAST"),
        ([DEMO, "--layers", "3-"], "--layers: found '3-', expected FIRST-LAST"),
        ([DEMO, "--seed", "-1"], "argument --seed: found -1, expected 0 to 4294967295"),
        ([DEMO, "--layers", "0-3"], "layers: found 0 to 3, expected a range within 1 to 7"),
        ([DEMO, "--over-refusal", "1"], "--over-refusal: found 1.0"),
        ([DEMO, "--shrinkage", "2"], "--shrinkage: found '2', expected 0 to 1, oas or"),
        ([DEMO, "--shrinkage", "most"], "--shrinkage: found 'most', expected 0 to 1"),
        ([DEMO, "--neutral-text", "empty"], "no prompts found"),
        ([DEMO, "--system-prompt", "empty"], "empty: is empty, expected a system prompt"),
        ([DEMO, "--system-prompt", "latin1"], "latin1: cannot be read as text"),
        ([DEMO, "--modality", "image"], "--modality image: this model sees no pictures"),
        ([DEMO, "--neutral-media", "pictures"], "--neutral-media: this model sees no pictures"),
        ([DEMO, "--mmproj", DEMO_MMPROJ, "--neutral-media", "pictures"], "a.png: "),
        ([DEMO, "--layer", "3"], "--model and --layer go with a direction measured elsewhere"),
        ([DEMO, "-m", DEMO], "--model and --layer go with a direction measured elsewhere"),
        (["-m", "missing.gguf"], "missing.gguf: no such file"),
        (["-hff", "a.gguf"], "--hf-file names a file of --hf-repo: give both"),
        (["-m", DEMO, "-hfr", "a/b", "-hff", "c"], "--hf-repo needs --hf-file, and takes the pla"),
        ([DEMO, "-t", "600"], "argument -t/--threads: found 600, expected 1 to 512"),
        ([DEMO, "-ngl", "some"], "argument -ngl/--n-gpu-layers: found 'some', expected a whole"),
        ([DEMO, "--batch-size", "0"], "argument --batch-size: found 0, expected 1 to"),
        ([DEMO, "--chat-template-kwargs", "{"], "--chat-template-kwargs: found '{', expected JSON"),
        ([DEMO, "--chat-template-kwargs", "[1]"], "found '[1]', expected a JSON object, as in"),
        ([DEMO, "--chat-handler", "llava"], "argument --chat-handler: invalid choice: 'llava'"),
        (["pictures", "--chat-handler", "mtmd", "-t", "1"], " goes with GGUF models"),
        (
            [DEMO, "--mmproj", DEMO_MMPROJ, "--no-mmproj", "--modality", "image"],
            "--modality image: this model sees no pictures",
        ),
        ([], "no model: give a GGUF file, a transformers model, or --recipe"),
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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"n_ctx": None, "n_gpu_layers": 0}),
        (["-ngl", "all", "-c", "0"], {"n_ctx": 0, "n_gpu_layers": -1}),
        (
            ["--chat-template-kwargs", '{"enable_thinking": false}', "--chat-handler", "chatml"],
            {"chat_template_kwargs": {"enable_thinking": False}, "chat_handler": "chatml"},
        ),
    ],
)
def test_what_the_options_say_reaches_the_extractor(
    options: list[str], expected: dict[str, Any], inputs: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    opened: list[dict[str, Any]] = []

    def extractor(model: str, mmproj: str | None, **given: Any) -> None:
        opened.append({"model": model, "mmproj": mmproj, **given})
        raise ModelError("opened")

    monkeypatch.setattr("mars_gguf.convert.extract_gguf.GgufExtractor", extractor)
    for model in ([DEMO], ["-m", DEMO], ["--model", DEMO]):
        with pytest.raises(SystemExit):
            convert(
                *model, "--mmproj", DEMO_MMPROJ, *options, folder=inputs, output=tmp_path / "v.gguf"
            )
        assert opened[-1].items() >= expected.items()
        assert (opened[-1]["model"], opened[-1]["mmproj"]) == (DEMO, DEMO_MMPROJ)


def test_one_set_of_prompts_without_the_other_is_refused(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([DEMO, "--harmful", str(inputs / "harmful")])
    assert ended.value.code == 2
    assert "--harmful and --harmless go together" in capsys.readouterr().err


def test_an_mmproj_of_another_model_is_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = random_llama(tmp_path / "other.gguf")
    with pytest.raises(SystemExit) as ended:
        convert(other, "--mmproj", DEMO_MMPROJ, folder=inputs, output=tmp_path / "v.gguf")
    assert ended.value.code == 2
    assert "Is it the mmproj that belongs to this model?" in capsys.readouterr().err
    assert not (tmp_path / "v.gguf").exists()


def test_a_model_without_a_chat_template_is_asked_in_chatml(inputs: Path, tmp_path: Path) -> None:
    other, output = random_llama(tmp_path / "other.gguf", template=""), tmp_path / "v.gguf"
    convert(other, "--no-plot", folder=inputs, output=output)
    expected = hashlib.sha256(CHATML.encode()).hexdigest()
    assert read_vector(output).model.chat_template_sha256 == expected


def places(folder: Path) -> dict[str, Path]:
    """Where no vector can be written, or not with its card."""
    for name in ("loop.gguf", "card.md", "circle", "same.gguf"):
        (folder / name).symlink_to({"same.gguf": "same.md"}.get(name, name))
    (folder / "kept.gguf").write_bytes(VECTOR.read_bytes())
    (folder / "kept.gguf").chmod(0o444)
    return {
        "the model itself": folder / "m.gguf",
        "a folder": folder / "inputs",
        "under a file": folder / "m.gguf" / "v.gguf",
        "without rights": Path("/proc/v.gguf"),
        "a link to itself": folder / "loop.gguf",
        "under a link to itself": folder / "circle" / "v.gguf",
        "a card that is a link to itself": folder / "card.gguf",
        "a link to its card": folder / "same.gguf",
        "write-protected": folder / "kept.gguf",
        "too long": folder / f"{'x' * 240}.gguf",
        "in a folder too long": folder / "new" / ("x" * 300) / "v.gguf",
        "not UTF-8": folder / os.fsdecode(b"\xff.gguf"),
    }


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows makes no symbolic links without further rights"
)
@pytest.mark.parametrize("place", [
    "the model itself", "a folder", "under a file", "without rights", "a link to itself",
    "under a link to itself", "a card that is a link to itself", "a link to its card",
    "write-protected", "too long", "in a folder too long", "not UTF-8",
])  # fmt: skip
def test_places_that_cannot_be_written_are_refused_before_the_model_is_opened(
    place: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF, as far as this goes")
    output = places(tmp_path)[place]
    if place == "without rights" and not Path("/proc").is_dir():
        pytest.skip("this system has no /proc, where not even root may write")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        convert(str(model), folder=inputs, output=output)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert printable(str(output.with_suffix(""))) in error
    assert "llama.cpp" not in error
    assert sorted(tmp_path.rglob("*")) == before
    assert model.read_bytes() == b"GGUF, as far as this goes"


def test_while_one_conversion_writes_another_to_the_same_file_is_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link.gguf").symlink_to("new/v.gguf")
    partial = tmp_path / "new" / "v.md.abcdefgh.partial"
    with claimed(tmp_path / "new" / "v.gguf"):
        partial.touch()  # what the first is writing
        for name in ("new/v.gguf", "link.gguf"):
            with pytest.raises(SystemExit) as ended:
                convert("model.txt", folder=inputs, output=tmp_path / name)
            assert ended.value.code == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: another conversion is writing {tmp_path / name}. ")
        assert partial.exists()
    assert list(partial.parent.iterdir()) == [partial]
    with claimed(tmp_path / "new" / "v.gguf"):
        assert not partial.exists()
    assert list(partial.parent.iterdir()) == []
    with claimed(tmp_path / "a" / "b" / "v.gguf"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()  # nothing came into it


def test_a_failed_conversion_leaves_the_older_vector_as_it_was(
    inputs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "v.gguf"
    convert(DEMO, "--no-plot", folder=inputs, output=output)
    before = output.read_bytes()
    assert read_vector(output).modalities == ["text"]
    with pytest.raises(SystemExit):
        convert(DEMO, "--harmful", "same", folder=inputs, output=output)
    assert output.read_bytes() == before
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["inputs", "v.gguf", "v.md"]


def test_the_module_runs_as_a_command_from_any_folder(inputs: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mars_gguf.convert", "missing.gguf"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: missing.gguf: no such file\n"
    assert sorted(tmp_path.iterdir()) == [inputs]


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("README.md", "README.md: found a file here, but no vector README.gguf that it belongs to"),
        ("README.png", "README.png: found a file here, but no vector README.gguf"),
        ("README.gguf", "README.gguf: found a file that is no vector. Choose another --output."),
    ],
)
def test_files_that_belong_to_no_older_vector_are_not_replaced(
    there: str, message: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / there).write_bytes(Path(DEMO).read_bytes()[:1000])
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    with pytest.raises(SystemExit) as ended:
        convert(DEMO, folder=inputs, output=tmp_path / "README.gguf")
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before


# What is measured with ---------------------------------------------------------------------------


def measured(inputs: Path, output: Path, *options: str) -> Vector:
    convert(DEMO, "--no-plot", *options, folder=inputs, output=output)
    assert sorted(p.name for p in output.parent.glob("v.*")) == ["v.gguf", "v.md"]
    return read_vector(output)


def counts(vector: Vector, name: str) -> list[int]:
    return [int(str(vector.calibration[f"prompts.{name}.{part}"])) for part in Split._fields]


def test_neutral_text_of_ones_own_is_measured_with_and_quick_measures_on_a_quarter(
    inputs: Path, tmp_path: Path
) -> None:
    plain = measured(inputs, tmp_path / "v.gguf")
    assert counts(plain, "harmful") == counts(plain, "neutral.text") == [30, 12, 18]
    odd = measured(inputs, tmp_path / "v.gguf", "--neutral-text", "odd", "--shrinkage", "oas")
    assert counts(odd, "neutral.text") == [30 + 12, 12 + 8, 18 + 20]
    assert odd.calibration["shrinkage"] == "oas"
    assert odd.source["prompts_sha256"] != plain.source["prompts_sha256"]
    output = tmp_path / "v.gguf"
    main(
        [
            DEMO,
            "--quick",
            "--no-contexts",
            "--layers",
            "6",
            "--no-plot",
            "-q",
            "-t",
            "1",
            "-o",
            str(output),
        ]
    )
    quick, whole = read_vector(output), builtin_contrast()
    assert sum(counts(quick, "harmful")) == -(-len(whole.harmful) // 4)
    assert "quarter" in str(quick.source["quick"])


def test_everything_is_measured_under_the_system_prompt_that_is_given(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[dict[str, Any]]] = []
    render = GgufExtractor.cached

    def cached(self: GgufExtractor, prompt: Prompt, number: int = 0) -> Any:
        asked.append(prompt.messages)
        return render(self, prompt, number)

    monkeypatch.setattr(GgufExtractor, "cached", cached)
    system = {"role": "system", "content": "You are terse.\nYou like tea."}
    vector = measured(inputs, tmp_path / "v.gguf", "--system-prompt", "system")
    assert vector.system_prompt == system["content"]
    assert all(messages[0] == system for messages in asked)
    asked.clear()
    vector = measured(inputs, tmp_path / "v.gguf", "--no-contexts")
    assert vector.system_prompt is None
    assert {len(messages) for messages in asked} == {1}


@pytest.mark.parametrize(
    ("output", "message"), [("v.gguf", "is the input itself"), ("v.md", "expected '.gguf'")]
)
def test_neither_vector_nor_card_replaces_what_was_there(
    output: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "v.md"
    prompts.write_text("\n".join(f"What is {n}?" for n in range(20)))
    given = ["--harmful", str(prompts), "--harmless", str(prompts)]
    with pytest.raises(SystemExit) as ended:
        main([DEMO, *given, "-o", str(tmp_path / output)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert prompts.read_text().startswith("What is 0?")
