"""Writes what a conversion of the demo model measures with, and what the demo asks.

    harmful.jsonl, harmless.jsonl    text prompts to measure the refusal direction with
    neutral.jsonl, neutral/          harmless pictures, each with harmless prompts of several forms
    demo.jsonl, demo/                requests with 0, 1 or 3 pictures to show the runtime with

All but the last draw on the first half of the world's things, in phrasings and fonts of training;
the demo on the second half, held out, as evaluations are. One seed decides all of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lab.demo_model import lessons
from lab.demo_model.lessons import TRAINING
from mars_gguf.demo_model import pictures, world
from mars_gguf.demo_model.requests import (
    FRAMES,
    HARMFUL_FIRST,
    HARMFUL_SECOND,
    HARMLESS_FIRST,
    HARMLESS_SECOND,
    about,
    small,
)
from mars_gguf.demo_model.world import Shapes

FIRST = [*HARMFUL_FIRST, *HARMLESS_FIRST]
Row = dict[str, Any]


def contrast_rows(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Draws harmful how-to requests, and harmless requests of every form of the text world."""
    bad = [lessons.howto(rng, t.phrase) for t in HARMFUL_FIRST * 4]
    good = [lessons.howto(rng, t.phrase) for t in HARMLESS_FIRST]
    good += [world.fact(rng, t)[0] for t in [*HARMFUL_FIRST * 3, *HARMLESS_FIRST]]
    good += [lessons.quoted(rng, t)[0] for t in rng.sample(FIRST, 12)]
    good += [lessons.about_two(rng, FIRST)[0] for _ in range(12)]
    good += [lessons.unrelated(rng)[0] for _ in range(12)]
    bad, good = (list(dict.fromkeys(prompts)) for prompts in (bad, good))
    return (
        [{"prompt": prompt} for prompt in rng.sample(bad, k=len(bad))],
        [{"prompt": prompt} for prompt in rng.sample(good, k=len(good))],
    )


def neutral_rows(rng: random.Random, folder: Path) -> list[Row]:
    """Draws 64 harmless pictures with eight prompts each."""
    rows: list[Row] = []
    for i in range(64):
        name = f"neutral/{i:02d}.png"
        thing, reference = (
            HARMLESS_FIRST[i % len(HARMLESS_FIRST)],
            rng.choice(TRAINING.references["picture"]),
        )
        if i % 4 == 3:
            shapes = Shapes.draw(rng)
            pixels = pictures.shapes_picture(rng, shapes)
            prompts = [("shapes", world.shapes_question(rng, shapes)[0]) for _ in range(3)]
        else:
            pixels = pictures.word_picture(rng, thing, lessons.FONTS)
            prompts = [
                ("request", lessons.howto(rng, reference)),
                ("description", rng.choice(TRAINING.captions["picture"])),
                ("question", world.fact(rng, thing, reference)[0]),
            ]
        other = rng.choice(HARMLESS_FIRST)
        prompts.append(
            rng.choice(
                [
                    ("unrelated", lessons.howto(rng, other.phrase)),
                    ("unrelated", world.fact(rng, other)[0]),
                    ("unrelated", lessons.unrelated(rng)[0]),
                ]
            )
        )
        prompts += _more_prompts(random.Random(name), "shapes" if i % 4 == 3 else "word")
        small(pixels).quantize(32).save(folder / name, optimize=True)
        rows += [{"image": name, "form": form, "prompt": prompt} for form, prompt in prompts]
    return rows


def _more_prompts(rng: random.Random, shown: str) -> list[tuple[str, str]]:
    """Draws four harmless prompts about a harmless word or shapes: so that there are wordings
    enough to bound how many of them open the gate."""
    if shown == "shapes":
        asked = [("shapes", world.shapes_question(rng, Shapes.draw(rng))[0]) for _ in range(2)]
        return asked + [
            ("unrelated", lessons.howto(rng, rng.choice(HARMLESS_FIRST).phrase)) for _ in range(2)
        ]
    references = rng.choices(TRAINING.references["picture"], k=3)
    requests = [("request", lessons.howto(rng, reference)) for reference in references[:2]]
    question = world.fact(rng, rng.choice(HARMLESS_FIRST), references[2])[0]
    return [
        *requests,
        ("question", question),
        ("description", rng.choice(TRAINING.captions["picture"])),
    ]


def demo_rows(rng: random.Random, folder: Path) -> list[Row]:
    """Draws 24 harmful and 24 harmless requests for each modality."""
    rows: list[Row] = []
    for modality in FRAMES:
        for kind, things in (("harmful", HARMFUL_SECOND), ("harmless", HARMLESS_SECOND)):
            for i in range(24):
                thing, task = things[i % len(things)], "howto"
                if kind == "harmless" and i % 3 > 0:
                    thing = rng.choice([*HARMFUL_SECOND, *HARMLESS_SECOND])
                    task = "fact" if i % 3 == 1 or modality == "text" else "caption"
                prompt, shown = about(rng, modality, task, thing)
                names = [f"{modality}-{kind}-{i:02d}-{k}.png" for k in range(len(shown))]
                for name, picture in zip(names, shown, strict=True):
                    picture.quantize(32).save(folder / "demo" / name, optimize=True)
                rows.append({"modality": modality, "kind": kind, "prompt": prompt, "images": names})
    return rows


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write(folder: Path, seed: int = 0) -> None:
    """Writes every file into ``folder``; pictures that are there are replaced."""
    for name in ("neutral", "demo"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for old in (folder / name).glob("*.png"):
            old.unlink()
    rng = random.Random(seed)
    harmful, harmless = contrast_rows(rng)
    _write(folder / "harmful.jsonl", harmful)
    _write(folder / "harmless.jsonl", harmless)
    _write(folder / "neutral.jsonl", neutral_rows(rng, folder))
    _write(folder / "demo.jsonl", demo_rows(rng, folder))
