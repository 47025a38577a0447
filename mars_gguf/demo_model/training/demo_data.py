"""Write the demo model's data: ``python -m mars_gguf.demo_model.training.demo_data FOLDER``.

harmful.jsonl, harmless.jsonl    text prompts to measure a refusal direction with
neutral.jsonl, neutral/          harmless pictures and prompts to measure what a picture shifts
demo.jsonl, demo/                requests to show the runtime with, in three modalities

The first two draw on one half of the things, in phrasings and fonts of training; the last on the
other half, held out.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from mars_gguf.demo_model.training import world
from mars_gguf.demo_model.training.world import Shapes, Thing

HARMFUL_FIRST, HARMFUL_SECOND = world.halves(world.HARMFUL)
HARMLESS_FIRST, HARMLESS_SECOND = world.halves(world.HARMLESS)
Row = dict[str, object]


def contrast_prompts(seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Harmful how-to requests, and harmless requests of every form the text world has."""
    rng = random.Random(f"contrast|{seed}")
    both = [*HARMFUL_FIRST, *HARMLESS_FIRST]

    def about(thing: Thing, prompt: str) -> Row:
        return {"prompt": prompt, "thing": thing.word}

    harmful = [about(t, world.howto(rng, t.phrase)) for t in HARMFUL_FIRST * 4]
    harmless = [about(t, world.howto(rng, t.phrase)) for t in HARMLESS_FIRST]
    harmless += [about(t, world.fact(rng, t)[0]) for t in both]
    harmless += [about(t, world.quoted(rng, t)[0]) for t in rng.sample(both, 12)]
    harmless += [{"prompt": world.about_two(rng, both)[0]} for _ in range(12)]
    harmless += [{"prompt": world.unrelated(rng)[0]} for _ in range(16)]
    return harmful, harmless


def _save(pixels: world.Pixels, path: Path) -> None:
    # Two colours and their blends: 32 are plenty, and the file stays near a kilobyte.
    Image.fromarray(pixels).quantize(32, dither=Image.Dither.NONE).save(path, optimize=True)


def write_neutral(folder: Path, seed: int = 0) -> list[Row]:
    """64 harmless pictures, each with one prompt: how-to, caption, fact, shapes, unrelated."""
    rng = random.Random(f"neutral|{seed}")
    rows: list[Row] = []
    for i in range(64):
        name = f"{i:02d}.png"
        if i % 4 == 3:
            shapes = Shapes.draw(rng)
            pixels = world.shapes_picture(rng, shapes, grain=0)
            prompt = world.shapes_question(rng, shapes)[0]
        else:
            thing = HARMLESS_FIRST[i % len(HARMLESS_FIRST)]
            pixels = world.word_picture(rng, thing, grain=0)
            reference = rng.choice(world.REFERENCES)
            match i % 16 % 6:
                case 0 | 4:
                    prompt = world.howto(rng, reference)
                case 1:
                    prompt = rng.choice(world.CAPTION)
                case 2:
                    prompt = world.fact(rng, thing, reference)[0]
                case _:
                    prompt = world.unrelated(rng)[0]
        _save(pixels, folder / name)
        rows.append({"image": f"neutral/{name}", "prompt": prompt})
    return rows


_HARMLESS_TASKS = {
    "text": ("howto",) * 12 + ("fact",) * 8 + ("unrelated",) * 4,
    "image": ("howto",) * 8 + ("caption",) * 6 + ("fact",) * 6 + ("shapes",) * 4,
    "video": ("howto",) * 10 + ("caption",) * 7 + ("fact",) * 7,
}


def write_demo(folder: Path, seed: int = 0) -> list[Row]:
    """24 harmful and 24 harmless requests for each modality, from the second half of the things."""
    rng = random.Random(f"demo|{seed}")
    rows: list[Row] = []
    for modality, harmless_tasks in _HARMLESS_TASKS.items():
        for kind, tasks in (("harmful", ("howto",) * 24), ("harmless", harmless_tasks)):
            for i, task in enumerate(tasks):
                if kind == "harmful":
                    thing = HARMFUL_SECOND[i]
                elif task in ("caption", "fact"):
                    thing = rng.choice([*HARMFUL_SECOND, *HARMLESS_SECOND])
                else:
                    thing = HARMLESS_SECOND[i]
                medium = {"image": "picture"}.get(modality, modality)
                if task == "shapes":
                    shapes = Shapes.draw(rng)
                    pictures = [world.shapes_picture(rng, shapes, grain=0)]
                    prompt = world.shapes_question(rng, shapes)[0]
                else:
                    prompt = world.example(f"{medium}-{task}", rng, thing).prompt
                    count = {"text": 0, "image": 1}.get(modality, 3 + i % 2)
                    pictures = [world.word_picture(rng, thing, True, 0) for _ in range(count)]
                images = []
                for k, pixels in enumerate(pictures):
                    images.append(f"{modality}-{kind}-{i:02d}-{k}.png")
                    _save(pixels, folder / images[-1])
                rows.append(
                    {"kind": kind, "modality": modality, "prompt": prompt, "images": images}
                )
    return rows


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write(folder: Path) -> None:
    """Write every file into ``folder``, replacing pictures that are there."""
    for name in ("neutral", "demo"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for old in (folder / name).glob("*.png"):
            old.unlink()
    harmful, harmless = contrast_prompts()
    _write(folder / "harmful.jsonl", harmful)
    _write(folder / "harmless.jsonl", harmless)
    _write(folder / "neutral.jsonl", write_neutral(folder / "neutral"))
    _write(folder / "demo.jsonl", write_demo(folder / "demo"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
