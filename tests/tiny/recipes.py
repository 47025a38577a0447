"""``python -m tests.tiny.recipes [NAME ...]``: the recipes of models that people run, followed for
the tiny model of their family, on few prompts. Exits with 1 if one cannot be.

The real models are not at hand: what is seen here is that each recipe is one, and that what it
chooses suits a model of the same architecture, projector and form of chat template.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # as pytest does
from commands import convert  # noqa: E402

from mars_gguf.convert.prompts import ContrastPrompts, read_prompts  # noqa: E402
from mars_gguf.convert.recipes import read_recipe, tomllib  # noqa: E402
from mars_gguf.vectors import read_vector  # noqa: E402
from tiny import FAMILIES, Family, templates  # noqa: E402
from tiny.checks import require  # noqa: E402
from tiny.commands import few, quiet  # noqa: E402
from tiny.subject import Subject  # noqa: E402

RECIPES: dict[str, Family] = {
    "qwen2.5-vl-3b": FAMILIES["qwen2.5vl"],
    "qwen2.5-vl-7b": FAMILIES["qwen2.5vl"],
    "qwen3-vl-4b": FAMILIES["qwen3vl"],
    "qwen3-vl-8b": FAMILIES["qwen3vl"],
    "qwen3-vl-8b-thinking": replace(
        FAMILIES["qwen3vl"], name="qwen3vl-thinking", chat=templates.QWEN_3_VL_THINKING
    ),
    "qwen3.5-4b": FAMILIES["qwen35"],
    "gemma-3-4b": FAMILIES["gemma3"],
    "gemma-3-12b": FAMILIES["gemma3"],
    "gemma-4-e4b": FAMILIES["gemma4-e"],
    "smolvlm2-2.2b": FAMILIES["smolvlm"],
    "internvl3.5-8b": FAMILIES["internvl-qwen3"],
    "minicpm-v-4.5": FAMILIES["minicpmv"],
    "ministral-3-8b": FAMILIES["mistral3"],
    "pixtral-12b": FAMILIES["pixtral"],
}


def path_of(name: str) -> Path:
    return ROOT / "convert" / f"{name}.toml"


def followed(name: str, place: Path) -> None:
    """Convert the tiny model of the recipe's family as it says, and look at what it made."""
    subject = Subject.of(RECIPES[name], place)
    recipe, output = for_tiny(path_of(name), subject), subject.folder / f"{name}.gguf"
    with quiet():
        convert(["--recipe", str(recipe), "-q", "-t", "1"])
    vector, expected = read_vector(output), read_recipe(path_of(name))
    found = vector.modalities
    require(found == ["text", "image", "video"], f"measured {found}")
    found = vector.model.reasoning
    require(found == expected.get("reasoning", ""), f"reasoning {found!r}")
    card = output.with_suffix(".md").read_text("utf-8")
    require(expected["untested"] in card, "the card does not say that the recipe is untested")


def for_tiny(path: Path, subject: Subject) -> Path:
    """The same recipe for a tiny model, with files of its own and few prompts."""
    content = tomllib.loads(path.read_text("utf-8"))
    asked = {name: str(file) for name, file in few(subject).items()}
    contrast = ContrastPrompts(*(read_prompts(asked[side]) for side in ("harmful", "harmless")))
    content["output"] = str(subject.folder / f"{path.stem}.gguf")
    for key in ("hub", "file", "mmproj_file", "quantization"):
        del content["model"][key]
    content["model"] |= {"path": subject.model, "mmproj": subject.mmproj}
    content["prompts"] = {side: asked[side] for side in ("harmful", "harmless")}
    content["prompts"]["sha256"] = contrast.sha256
    content["neutral"] = content.get("neutral", {}) | {
        "media": asked["neutral-media"],
        "own_wordings": True,
    }
    lines = []
    for key, value in content.items():
        values = value if isinstance(value, dict) else {key: value}
        lines += [f"[{key}]"] * isinstance(value, dict)
        lines += [f"{name} = {json.dumps(one)}" for name, one in values.items()]
    written = subject.folder / path.name
    written.write_text("\n".join(lines), "utf-8")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tiny.recipes", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    names = parser.parse_args().names or list(RECIPES)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                followed(name, Path(folder))
                print(f"{name}: followed for {RECIPES[name].name}", flush=True)
            except Exception as error:
                failed = True
                print(f"{name}: {error}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
