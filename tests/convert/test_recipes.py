"""Recipes: what they say, what is refused, and that they make the same vector again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import convert as main
from hubs import served
from models import DEMO, DEMO_MMPROJ
from tiny.recipes import RECIPES, followed, for_tiny, path_of
from tiny.subject import Subject

from mars_gguf import demo_model
from mars_gguf.convert.prompts import ContrastPrompts, builtin_contrast, read_prompts
from mars_gguf.convert.recipes import KEYS, read_recipe
from mars_gguf.errors import MarsError
from mars_gguf.vectors import read_vector

SHIPPED = sorted((Path(__file__).parents[2] / "convert").glob("*.toml"))
MODELS = [path for path in SHIPPED if path.stem != "demo"]
SHA256 = builtin_contrast().sha256
MINIMAL = f"""
output = "v.gguf"
[model]
path = "model.gguf"
[prompts]
sha256 = "{SHA256}"
"""


def recipe(folder: Path, text: str = MINIMAL) -> Path:
    path = folder / "r.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipes_name_files_that_are_there_and_prompts_that_are_these(path: Path) -> None:
    options = read_recipe(path)
    assert Path(options["output"]).resolve().parent == path.parents[1] / "vectors"
    here = ["harmful", "harmless", "neutral_media", *["mmproj"] * ("hf_repo" not in options)]
    for name in here:
        assert name not in options or Path(options[name]).exists()
    contrast = builtin_contrast()
    if "harmful" in options:
        contrast = ContrastPrompts(*(read_prompts(options[n]) for n in ("harmful", "harmless")))
    assert contrast.sha256 == options["prompts_sha256"]


def test_the_recipe_in_the_documents_has_every_key_and_is_one(tmp_path: Path) -> None:
    page = (SHIPPED[0].parents[1] / "docs" / "CONVERTING.md").read_text(encoding="utf-8")
    shown = page.split("```toml\n")[1].split("```")[0]
    with pytest.raises(MarsError, match="needs a path or a hub id, one of them"):
        read_recipe(recipe(tmp_path, shown))
    of_hub = ("hub =", "revision =", "file =", "mmproj_file =")
    text = "\n".join(line for line in shown.splitlines() if not line.startswith(of_hub))
    expected = {option for keys in KEYS.values() for _, option in keys.values()}
    assert read_recipe(recipe(tmp_path, text)).keys() == expected - {"revision", "hf_file"}


def test_there_is_a_recipe_of_the_shipped_model() -> None:
    options = read_recipe(next(path for path in SHIPPED if path.name == "demo.toml"))
    assert Path(options["input"]).samefile(demo_model.TEXT_MODEL)
    assert "untested" not in options


def test_paths_are_relative_to_the_recipe_and_names_are_not(tmp_path: Path) -> None:
    assert read_recipe(recipe(tmp_path))["input"] == str(tmp_path / "model.gguf")
    hub = MINIMAL.replace('path = "model.gguf"', 'hub = "ORG/NAME"\nrevision = "abc"')
    options = read_recipe(recipe(tmp_path, hub))
    assert (options["input"], options["revision"]) == ("ORG/NAME", "abc")
    assert options["output"] == str(tmp_path / "v.gguf")


def test_a_recipe_names_a_gguf_of_the_hub(tmp_path: Path) -> None:
    hub = MINIMAL.replace('path = "model.gguf"', 'hub = "ORG/NAME"\nfile = "a.gguf"')
    options = read_recipe(recipe(tmp_path, hub))
    assert (options["hf_repo"], options["hf_file"]) == ("ORG/NAME", "a.gguf")
    assert "input" not in options and "mmproj" not in options
    hub = hub.replace("[prompts]", 'mmproj_file = "mmproj.gguf"\n[prompts]')
    assert read_recipe(recipe(tmp_path, hub))["mmproj"] == "mmproj.gguf"


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_recipe_of_a_model_that_people_run_says_where_it_is_and_that_it_is_untested(
    path: Path,
) -> None:
    options = read_recipe(path)
    assert Path(options["output"]).stem == path.stem
    assert "only a tiny one of its family" in options["untested"]
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", options["hf_repo"])
    assert re.fullmatch(r"[\w.-]+Q4_K_M\.gguf", options["hf_file"])
    assert re.fullmatch(r"[\w.-]*mmproj[\w.-]*\.gguf", options["mmproj"])


def test_each_of_them_has_a_tiny_model_and_is_listed() -> None:
    names = [path.stem for path in MODELS]
    assert sorted(names) == sorted(RECIPES)
    page = (SHIPPED[0].parents[1] / "docs" / "CONVERTING.md").read_text(encoding="utf-8")
    for name in names:
        assert f"`{name}`" in page


@pytest.mark.parametrize("name", ["qwen3-vl-8b-thinking", "internvl3.5-8b", "pixtral-12b"])
def test_it_can_be_followed_for_the_tiny_model_of_its_family(name: str, tmp_path: Path) -> None:
    followed(name, tmp_path)


def test_a_recipe_of_the_hub_is_followed_from_there(tmp_path: Path) -> None:
    subject = Subject.of(RECIPES["qwen2.5-vl-3b"], tmp_path)
    path = for_tiny(path_of("qwen2.5-vl-3b"), subject)
    text = path.read_text("utf-8")
    for key, name, file in (
        ("path", "file", "model.gguf"),
        ("mmproj", "mmproj_file", "mmproj.gguf"),
    ):
        text = re.sub(rf'(?m)^{key} = ".*"$', f'{name} = "{file}"', text)
    path.write_text(text.replace("[model]", '[model]\nhub = "org/model"'), "utf-8")
    files = {name: subject.folder / name for name in ("model.gguf", "mmproj.gguf")}
    with served(tmp_path / "hub", {"org/model": files}) as environment:
        command = [
            sys.executable,
            "-m",
            "mars_gguf.convert",
            "--recipe",
            str(path),
            "-q",
            "-t",
            "1",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    vector = read_vector(subject.folder / "qwen2.5-vl-3b.gguf")
    assert vector.modalities == ["text", "image", "video"]
    assert vector.model.mmproj_sha256


def test_a_recipe_says_how_prompts_are_written(tmp_path: Path) -> None:
    assert "chat_handler" not in read_recipe(recipe(tmp_path))
    said = 'chat_handler = "chatml"\nchat_template_kwargs = {enable_thinking = false, n = 3}\npath'
    options = read_recipe(recipe(tmp_path, MINIMAL.replace("path", said)))
    assert options["chat_handler"] == "chatml"
    assert options["chat_template_kwargs"] == {"enable_thinking": False, "n": 3}


def test_a_recipe_says_how_the_gate_is_calibrated(tmp_path: Path) -> None:
    said = """
[neutral]
text = "odd.jsonl"
contexts = false
system_prompt = "system.txt"
[calibration]
over_refusal = 1e-2
shrinkage = "oas"
"""
    options = read_recipe(recipe(tmp_path, MINIMAL + said))
    assert options["neutral_text"] == str(tmp_path / "odd.jsonl")
    assert options["system_prompt"] == str(tmp_path / "system.txt")
    assert (options["contexts"], options["over_refusal"]) == (False, 0.01)
    assert options["shrinkage"] == "oas"


def test_a_shrinkage_that_is_none_ends_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = MINIMAL + '[calibration]\nshrinkage = "much"\n'
    with pytest.raises(SystemExit) as ended:
        main(["--recipe", str(recipe(tmp_path, said))])
    assert ended.value.code == 2
    assert "found 'much', expected 0 to 1, oas or ledoit-wolf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[model]", "[modell]", r"unknown section \[modell\], expected \[model\]"),
        ("path", "paht", "unknown key model.paht, expected one of path, hub"),
        ('"model.gguf"', "3", "model.path is 3, expected a path"),
        ('"model.gguf"', '""', "model.path is '', expected a path"),
        ('"model.gguf"', '"a\\u0000b"', r"model.path is 'a\\x00b', expected a path"),
        ('path = "model.gguf"', "", "needs a path or a hub id"),
        ("path =", 'hub = "A/B"\npath =', "needs a path or a hub id, one of them"),
        ("path =", "file =", "needs a path or a hub id"),
        ("path =", 'file = "a"\npath =', "model.file needs model.hub"),
        ("path =", 'mmproj_file = "a"\npath =', "model.mmproj_file needs model.file"),
        ("path =", 'revision = "a"\nfile = "a"\nhub =', "revision does not go with model.file"),
        ("path =", 'mmproj = "a"\nfile = "a"\nhub =', "mmproj does not go with model.file"),
        ("output", "outptu", "unknown key outptu, expected one of output, untested"),
        ('output = "v.gguf"', "", "output is missing"),
        ("sha256 =", "harmful =", "prompts.sha256 is missing"),
        ("[prompts]", "[calibration]\nseed = 1.5\n[prompts]", "seed is 1.5, expected a whole"),
        ("[prompts]", "[calibration]\nseed = -1\n[prompts]", "seed is -1, expected 0 to"),
        ("[prompts]", "[neutral]\ncount = 0\n[prompts]", "neutral.count is 0, expected 1 to"),
        ("[prompts]", "[calibration]\nseed = true\n[prompts]", "seed is True, expected a whole"),
        ("[prompts]", '[neutral]\nmodalities = ["smell"]\n[prompts]', "expected some of"),
        ("[prompts]", "[neutral]\ncontexts = 1\n[prompts]", "contexts is 1, expected true or f"),
        ("[prompts]", "[calibration]\nshrinkage = 0.5\n[prompts]", "is 0.5, expected text"),
        ("[prompts]", '[neutral]\nmodalities = "image"\n[prompts]', "expected a list"),
        ("path =", 'dtype = "int4"\npath =', "model.dtype is 'int4', expected one of .*bfloat16"),
        ("path =", 'chat_handler = "none"\npath =', "chat_handler is 'none', expected one"),
        ("path =", "chat_template_kwargs = 3\npath =", "kwargs is 3, expected a table"),
        ("[prompts]", f"x = {'[' * 5000}\n[prompts]", "cannot be read as TOML"),
        ("[prompts]", "[prompts", "cannot be read as TOML"),
        ("output", "\0", "cannot be read as TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_recipe_is_named(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    assert old in MINIMAL
    with pytest.raises(MarsError, match=message):
        read_recipe(recipe(tmp_path, MINIMAL.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (MINIMAL, ["model.gguf"], "--recipe says what to measure: found input beside it"),
        (MINIMAL, ["--seed", "3"], "--recipe says what to measure: found seed beside it"),
        (MINIMAL, [], "model.gguf: no such file"),
        (MINIMAL.replace(SHA256, "0" * 64), [], f"found prompts of sha256 {SHA256}"),
        (
            MINIMAL.replace("model.gguf", DEMO + '"\nquantization = "F16'),
            [],
            "found quantization 'Q4_K_M', the recipe says 'F16'",
        ),
        (MINIMAL.replace("path", "unknown"), [], "unknown key model.unknown"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_followed_end_with_a_message_and_no_file(
    text: str, options: list[str], message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = recipe(tmp_path, text)
    with pytest.raises(SystemExit) as ended:
        main(["--recipe", str(path), *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_no_such_recipe_ends_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--recipe", "nowhere.toml"])
    assert ended.value.code == 2
    assert "nowhere.toml: no such recipe" in capsys.readouterr().err


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A recipe of the shipped model on few of its prompts and pictures."""
    folder = demo_model.FOLDER
    contrast = []
    for name in ("harmful", "harmless"):
        contrast.append(read_prompts(folder / f"{name}.jsonl")[::4])
        (tmp_path / name).write_text("\n".join(contrast[-1]))
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (folder / "neutral.jsonl").read_text().splitlines()[::16]
    ]
    for row in rows:
        row["image"] = str(folder / row["image"])
    (tmp_path / "neutral.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return recipe(
        tmp_path,
        f"""
        output = "out/v.gguf"
        untested = "it is made in a test"
        [model]
        path = "{DEMO}"
        mmproj = "{DEMO_MMPROJ}"
        quantization = "Q4_K_M"
        ctx_size = 2048
        [prompts]
        harmful = "harmful"
        harmless = "harmless"
        sha256 = "{ContrastPrompts(*contrast).sha256}"
        [neutral]
        media = "neutral.jsonl"
        own_wordings = true
        modalities = ["image"]
        [calibration]
        layers = "4-6"
        over_refusal = 0.05
        """,
    )


def test_a_recipe_makes_the_same_bytes_again(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--recipe", str(small), "-q", "-t", "2"])
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    main(["--recipe", str(small), "-q", "-t", "2", "-o", str(tmp_path / "again" / "v.gguf")])
    again = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert sorted(first) == ["v.gguf", "v.md", "v.png"]
    assert first == again
    vector = read_vector(tmp_path / "out" / "v.gguf")
    assert vector.modalities == ["text", "image"]
    assert 4 <= vector.layer <= 6
    assert vector.calibration["over_refusal.text"] == pytest.approx(0.05)
    assert vector.source["recipe"] == "r.toml"
    assert "shipped untested: it is made in a test" in first["v.md"].decode()
    assert "shipped untested" in capsys.readouterr().out
