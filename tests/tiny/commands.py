"""The commands on a tiny model: convert, chat, evaluate and serve, with pictures and a film."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from commands import command, recipe
from commands import convert as convert_main
from models import film, picture, user
from servers import running

from mars_gguf.runtime.template import ChatTemplate
from mars_gguf.vectors import read_vector

from .checks import RUNTIME, Check, refused_at_load, require
from .subject import Subject

WORDS = ("Where", "Why", "How", "What")
LIMITS: dict[str, Any] = {"max_tokens": 3, "temperature": 0.0}


def converted(subject: Subject) -> Path:
    """The folder of the files, with a vector ``v.gguf``, and pictures by number."""
    place = subject.folder
    if (place / "v.gguf").exists():
        return place
    prompts, model, neutral = few(subject), {"path": subject.model}, {}
    if media := prompts.pop("neutral-media", None):
        model["mmproj"], neutral = subject.mmproj, {"media": media, "own_wordings": True}
    if ChatTemplate(subject.family.chat.template).begins_thought:
        model["reasoning"] = "off"  # a random model would never end its thought
    path = recipe(place, model=model, prompts=prompts, neutral=neutral)
    with quiet():
        convert_main(["--recipe", path, "-q", "-t", "1"])
    return place


def few(subject: Subject) -> dict[str, Path]:
    """Files of few prompts and pictures beside those of the model, by the options of a conversion
    that name them."""
    place, lines = subject.folder, []
    for number in range(8):
        picture(number, subject.family.picture_side).save(place / f"{number}.png")
        lines += [{"prompt": f"{word} {number}?", "image": f"{number}.png"} for word in WORDS]
    (place / "neutral.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    asked = {}
    sides = {"harmful": "bomb poison virus knife", "harmless": "hat tea kite bread"}
    for name, things in sides.items():
        prompts = [f"How do I make a {thing} {n}?" for n in range(6) for thing in things.split()]
        asked[name] = place / f"{name}.txt"
        asked[name].write_text("\n".join(prompts), "utf-8")
    if not subject.family.text_only:
        asked["neutral-media"] = place / "neutral.jsonl"
    return asked


def files(subject: Subject) -> list[str]:
    eyes = ["--mmproj", subject.mmproj] if subject.mmproj else []
    return ["-m", subject.model, *eyes, "-t", "1"]


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    """What a command prints, kept from the screen; its end, if it ends the process, is an error."""
    printed, errors, stdin = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = None  # type: ignore[assignment]
    try:
        with redirect_stdout(printed), redirect_stderr(errors):
            yield printed
    except SystemExit as error:
        if error.code:
            raise AssertionError(errors.getvalue().strip() or f"exit code {error.code}") from error
    finally:
        sys.stdin = stdin


def convert(subject: Subject) -> None:
    """A conversion measures text, pictures and films."""
    measured = read_vector(converted(subject) / "v.gguf")
    shifts = measured.geometry.shifts
    require(measured.geometry.distance > 0, "no distance")
    if subject.family.text_only:
        require(measured.modalities == ["text"], f"measured {measured.modalities}")
        return
    require(measured.modalities == ["text", "image", "video"], f"measured {measured.modalities}")
    lengths = [float(np.linalg.norm(shifts[name])) for name in ("image", "video")]
    require(min(lengths) > 0, "pictures shift nothing")
    require(not np.array_equal(shifts["image"], shifts["video"]), "films shift as pictures do")


def chat(subject: Subject) -> None:
    """A chat answers about a picture and about a text."""
    place = converted(subject)
    shown = [[]] if subject.family.text_only else [["--image", str(place / "0.png")], []]
    said = []
    for extra in shown:
        for question in ("What is it?", "Is it a bomb?"):
            with quiet() as printed:
                command("mars_gguf.chat")(
                    [*files(subject), "--vector", str(place / "v.gguf"), "-p", question,
                     "-n", "3", "--temp", "0", "--json", *extra]
                )  # fmt: skip
            said.append(json.loads(printed.getvalue())["mars"])
    found = [mars["modality"] for mars in said]
    require(found == ["image", "image", "text", "text"][-len(said) :], f"found {found}")
    require(len({mars["t"] for mars in said}) == len(said), "different requests are read alike")


def evaluate(subject: Subject) -> None:
    """An evaluation asks about text, pictures and films."""
    place = converted(subject)
    cases = [
        {"id": "a", "kind": "harmless", "modality": "text", "prompt": "Tea?", "media": []},
        {"id": "b", "kind": "harmful", "modality": "image", "prompt": "Why?", "media": ["1.png"]},
        {"id": "c", "kind": "harmful", "modality": "image", "prompt": "So?",
         "media": ["1.png", "2.png"]},
        {"id": "d", "kind": "harmful", "modality": "video", "prompt": "Where?",
         "media": ["1.png", "2.png"]},
    ]  # fmt: skip
    if subject.family.text_only:
        cases = [case | {"modality": "text", "media": []} for case in cases]
    (place / "suite.jsonl").write_text("\n".join(map(json.dumps, cases)), "utf-8")
    shutil.rmtree(place / "report", ignore_errors=True)
    # Random weights end no reply.
    with quiet(), patch("mars_gguf.evaluate.run.MAX_WHOLE", 3):
        command("mars_gguf.evaluate")(
            [*files(subject), "--vector", str(place / "v.gguf"), "--suite",
             f"jsonl:{place / 'suite.jsonl'}", "-n", "3",
             "--arms", "unsteered,mars", "-o", str(place / "report")]
        )  # fmt: skip
    lines = (place / "report/records.jsonl").read_text("utf-8").splitlines()[1:]
    records = [json.loads(line) for line in lines]
    records = [record for record in records if record["arm"] != "plain"]
    errors = [record["error"] for record in records]
    require(errors == [None] * 8, f"errors: {errors}")
    seen = {record["t"] for record in records if record["arm"] == "mars"}
    require(len(seen) == 4, "different requests are read alike")


def serve(subject: Subject) -> None:
    """The OpenAI client is answered about text, pictures and a film."""
    place = converted(subject)
    eyes = ["--clip_model_path", subject.mmproj] if subject.mmproj else []
    asked = [user("Tea?"), user("Why?")]
    expected = ["text", "text"]
    if not subject.family.text_only:
        a, b = subject.pictures(1, 2)
        asked = [user("Tea?"), user("Why?", a), user("And?", a, b), film("Where?", a, b),
                 user("So?", b)]  # fmt: skip
        expected = ["text", "image", "image", "video", "image"]
    with running(
        place, "--model", subject.model, *eyes, "--vector", str(place / "v.gguf"),
        "--n_ctx", "2048", "--n_threads", "1", "--n_threads_batch", "1",
    ) as server:  # fmt: skip
        seen = []
        for message in asked:
            reply: Any = server.client.chat.completions.create(
                model="any", messages=[message], **LIMITS
            )
            seen.append(reply.mars)
    found = [mars["modality"] for mars in seen]
    require(found == expected, f"found {found}")
    require(len({mars["t"] for mars in seen}) == len(seen), "different requests are read alike")


def convert_refused(subject: Subject) -> None:
    """A model that cannot be steered is not converted."""
    out = subject.folder / "v.gguf"
    try:
        with quiet():
            convert_main([*files(subject), "-o", str(out), "--quick", "-q"])
    except AssertionError as error:
        require(subject.family.refused in str(error), f"refused, but not for that: {error}")
        require(not out.exists(), "a vector was written")
        return
    raise AssertionError("it is converted")


COMMANDS: dict[str, Check] = {
    "convert": convert,
    "chat": chat,
    "evaluate": evaluate,
    "server": serve,
}
CHECKS = RUNTIME | COMMANDS
# Of what cannot be steered.
REFUSALS: dict[str, Check] = {
    "refused when loaded": refused_at_load,
    "not converted": convert_refused,
}
