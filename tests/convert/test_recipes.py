"""Recipes: what they say, what is refused, and that they make the same vector again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import convert as main
from commands import few_media, few_prompts
from commands import recipe as recipe_of
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
PAGE = (SHIPPED[0].parents[1] / "docs" / "CONVERTING.md").read_text(encoding="utf-8")
MINIMAL = """
output = "v.gguf"
[model]
path = "model.gguf"
[prompts]
"""


def recipe(folder: Path, text: str = MINIMAL) -> Path:
    path = folder / "r.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipes_name_files_that_are_there_and_prompts_that_are_these(path: Path) -> None:
    options = read_recipe(path)
    assert Path(options["output"]).resolve().parent == path.parents[1] / "vectors"
    assert Path(options["output"]).stem == path.stem
    here = ["harmful", "harmless", "neutral_media", *["mmproj"] * ("hf_repo" not in options)]
    for name in here:
        assert name not in options or Path(options[name]).exists()
    contrast = builtin_contrast()
    if "harmful" in options:
        contrast = ContrastPrompts(*(read_prompts(options[n]) for n in ("harmful", "harmless")))
    assert contrast.sha256 == options["sha256"]
    if path.stem == "demo":
        assert Path(options["input"]).samefile(demo_model.TEXT_MODEL)
        assert "untested" not in options
        return
    assert "only a tiny one of its family" in options["untested"]
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", options["hf_repo"])
    assert re.fullmatch(r"[\w.-]+Q4_K_M\.gguf", options["hf_file"])
    assert re.fullmatch(r"[\w.-]*mmproj[\w.-]*\.gguf", options["mmproj"])
    assert path.stem in RECIPES and f"`{path.stem}`" in PAGE


def test_the_recipe_in_the_documents_has_every_key_and_is_one(tmp_path: Path) -> None:
    shown = PAGE.split("```toml\n")[1].split("```")[0]
    with pytest.raises(MarsError, match="needs a path or a hub id, one of them"):
        read_recipe(recipe(tmp_path, shown))
    of_hub = ("hub =", "revision =", "file =", "mmproj_file =")
    text = "\n".join(line for line in shown.splitlines() if not line.startswith(of_hub))
    expected = {choice for keys in KEYS.values() for _, choice in keys.values()}
    found = read_recipe(recipe(tmp_path, text))
    assert found.keys() == expected - {"revision", "hf_file"}
    assert found["layers"] == (1, 24) and found["chat_template_kwargs"] == {"add_vision_id": True}
    assert found["system_prompt"] == str(tmp_path / "system.txt")


def test_paths_are_relative_to_the_recipe_and_names_of_the_hub_are_not(tmp_path: Path) -> None:
    assert read_recipe(recipe(tmp_path))["input"] == str(tmp_path / "model.gguf")
    hub = MINIMAL.replace('path = "model.gguf"', 'hub = "ORG/NAME"\nrevision = "abc"')
    options = read_recipe(recipe(tmp_path, hub))
    assert (options["input"], options["revision"]) == ("ORG/NAME", "abc")
    assert options["output"] == str(tmp_path / "v.gguf")
    hub = MINIMAL.replace('path = "model.gguf"', 'hub = "ORG/NAME"\nfile = "a.gguf"')
    options = read_recipe(recipe(tmp_path, hub.replace("file", 'mmproj_file = "b"\nfile')))
    assert (options["hf_repo"], options["hf_file"], options["mmproj"]) == (
        "ORG/NAME",
        "a.gguf",
        "b",
    )
    assert "input" not in options and "mmproj" not in read_recipe(recipe(tmp_path, hub))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-vl-8b-thinking", "internvl3.5-8b", "pixtral-12b"])
def test_it_can_be_followed_for_the_tiny_model_of_its_family(name: str, tmp_path: Path) -> None:
    followed(name, tmp_path)


@pytest.mark.slow
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
    command = [sys.executable, "-m", "mars_gguf.convert", "--recipe", str(path), "-q", "-t", "1"]
    with served(tmp_path / "hub", {"org/model": files}) as environment:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    vector = read_vector(subject.folder / "qwen2.5-vl-3b.gguf")
    assert vector.modalities == ["text", "image", "video"]
    assert vector.model.mmproj_sha256


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
        ("path =", 'file = "a"\npath =', "model.file needs model.hub"),
        ("path =", 'mmproj_file = "a"\npath =', "model.mmproj_file needs model.file"),
        ("path =", 'revision = "a"\nfile = "a"\nhub =', "revision does not go with model.file"),
        ("path =", 'mmproj = "a"\nfile = "a"\nhub =', "mmproj does not go with model.file"),
        ("output", "outptu", "unknown key outptu, expected one of output, untested"),
        ('output = "v.gguf"', "", "output is missing"),
        ("[prompts]", "[calibration]\nseed = 1.5\n[prompts]", "seed is 1.5, expected a whole"),
        ("[prompts]", "[calibration]\nseed = -1\n[prompts]", "seed is -1, expected 0 to"),
        ("[prompts]", "[calibration]\nseed = true\n[prompts]", "seed is True, expected a whole"),
        ("[prompts]", '[calibration]\nlayers = "3-"\n[prompts]', "is '3-', expected FIRST-LAST"),
        ("[prompts]", "[neutral]\ncount = 0\n[prompts]", "neutral.count is 0, expected 1 to"),
        ("[prompts]", '[neutral]\nmodalities = ["smell"]\n[prompts]', "expected some of"),
        ("[prompts]", '[neutral]\nmodalities = "image"\n[prompts]', "expected a list"),
        ("path =", 'dtype = "int4"\npath =', "model.dtype is 'int4', expected one of .*bfloat16"),
        ("path =", "chat_template_kwargs = 3\npath =", "kwargs is 3, expected a table"),
        ("[prompts]", f"x = {'[' * 5000}\n[prompts]", "cannot be read as TOML"),
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
    ("options", "message"),
    [
        (["--recipe", "r.toml", DEMO], "--recipe says what to measure: found input beside it"),
        (["--recipe", "r.toml", "--quick"], "--recipe says what to measure: found quick beside it"),
        (["--recipe", "r.toml", "-t", "1"], "model.gguf: no such file"),
        (["--recipe", "nowhere.toml"], "nowhere.toml: no such recipe"),
    ],
)
def test_recipes_that_cannot_be_followed_end_with_a_message_and_no_file(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([str(path) if word == "r.toml" else word for word in options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_a_recipe_makes_the_same_bytes_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = few_prompts(tmp_path)
    contrast = ContrastPrompts(*map(read_prompts, prompts.values()))
    path = recipe_of(
        tmp_path,
        "v.gguf",
        model={"path": DEMO, "mmproj": DEMO_MMPROJ, "quantization": "Q4_K_M", "ctx_size": 2048},
        prompts={**prompts, "sha256": contrast.sha256},
        neutral={"media": few_media(tmp_path), "own_wordings": True, "modalities": ["image"]},
        calibration={"layers": "4-6", "over_refusal": 0.05},
    )
    text = Path(path).read_text()
    Path(path).write_text('untested = "it is made in a test"\n' + text)
    for name in ("first", "again"):
        main(["--recipe", path, "-q", "-t", "2", "-o", str(tmp_path / name / "v.gguf")])
    first, again = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("first", "again")
    )
    assert sorted(first) == ["v.gguf", "v.md", "v.png"]
    assert first == again
    vector = read_vector(tmp_path / "first" / "v.gguf")
    assert vector.modalities == ["text", "image"]
    assert 4 <= vector.layer <= 6
    assert vector.calibration["over_refusal.text"] == pytest.approx(0.05)
    assert vector.source["recipe"] == Path(path).name
    assert "shipped untested: it is made in a test" in first["v.md"].decode()
    assert "shipped untested" in capsys.readouterr().out
