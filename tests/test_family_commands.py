"""The commands on tiny random models of the families that people own: convert, chat, evaluate and
serve, with pictures and a film."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import film, picture, user
from servers import Server, running
from tiny import FAMILIES, Family

from mars_gguf.chat.__main__ import main as chat
from mars_gguf.convert.__main__ import main as convert
from mars_gguf.evaluate.__main__ import main as evaluate
from mars_gguf.runtime.template import ChatTemplate
from mars_gguf.vectors import read_vector

WORDS = ("Where", "Why", "How", "What")
LIMITS: dict[str, Any] = {"max_tokens": 3, "temperature": 0.0}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture
def model(family: Family, folder: Path) -> Path:
    """The folder of the family's files, converted."""
    place = folder / family.name
    if not place.exists():
        family.write(place)
        shown = [picture(n, family.picture_side) for n in range(8)]
        lines = []
        for n, image in enumerate(shown):
            image.save(place / f"{n}.png")
            lines += [{"prompt": f"{word} {n}?", "image": f"{n}.png"} for word in WORDS]
        (place / "neutral.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
        sides = {"harmful": "bomb poison virus knife", "harmless": "hat tea kite bread"}
        for name, things in sides.items():
            asked = [f"How do I make a {x} {n}?" for n in range(6) for x in things.split()]
            (place / f"{name}.txt").write_text("\n".join(asked), "utf-8")
        given = [f"--{name}" for name in ("harmful", "harmless")]
        # A random model never ends a thought: then it shall not begin one.
        opens = ChatTemplate(family.chat.template).opens
        convert(
            [
                *("-m", str(place / "model.gguf"), "--mmproj", str(place / "mmproj.gguf")),
                *(given[0], str(place / "harmful.txt"), given[1], str(place / "harmless.txt")),
                *("--neutral-media", str(place / "neutral.jsonl"), "-o", str(place / "v.gguf")),
                *("-t", "1", "-q", "--no-plot"),
                *["--reasoning", "off"] * opens,
            ]
        )
    return place


def named(place: Path) -> list[str]:
    return [
        *("-m", str(place / "model.gguf"), "--mmproj", str(place / "mmproj.gguf")),
        *("--vector", str(place / "v.gguf"), "-t", "1"),
    ]


@every_family
def test_a_conversion_measures_text_pictures_and_films(family: Family, model: Path) -> None:
    vector = read_vector(model / "v.gguf")
    assert vector.modalities == ["text", "image", "video"]
    shifts = vector.geometry.shifts
    assert np.linalg.norm(shifts["image"]) > 0 and np.linalg.norm(shifts["video"]) > 0
    assert not np.array_equal(shifts["image"], shifts["video"])
    assert vector.geometry.distance > 0


@every_family
def test_a_chat_answers_about_a_picture_and_about_a_text(
    family: Family,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    said = []
    for extra in (["--image", str(model / "0.png")], []):
        for question in ("What is it?", "Is it a bomb?"):
            chat([*named(model), "-p", question, "-n", "3", "--temp", "0", "--json", *extra])
            said.append(json.loads(capsys.readouterr().out)["mars"])
    assert [mars["modality"] for mars in said] == ["image", "image", "text", "text"]
    assert len({mars["t"] for mars in said}) == 4


@every_family
def test_an_evaluation_asks_about_text_pictures_and_films(family: Family, model: Path) -> None:
    cases = [
        {"id": "a", "kind": "harmless", "modality": "text", "prompt": "Tea?", "media": []},
        {"id": "b", "kind": "harmful", "modality": "image", "prompt": "Why?", "media": ["1.png"]},
        {"id": "c", "kind": "harmful", "modality": "image", "prompt": "So?",
         "media": ["1.png", "2.png"]},
        {"id": "d", "kind": "harmful", "modality": "video", "prompt": "Where?",
         "media": ["1.png", "2.png"]},
    ]  # fmt: skip
    (model / "suite.jsonl").write_text("\n".join(map(json.dumps, cases)), "utf-8")
    out = model / "report"
    evaluate(
        [*named(model), "--suite", f"jsonl:{model / 'suite.jsonl'}", "--sweep", "", "-n", "3",
         "--arms", "unsteered,mars", "-o", str(out)]
    )  # fmt: skip
    lines = (out / "records.jsonl").read_text("utf-8").splitlines()[1:]
    records = [json.loads(line) for line in lines]
    assert len(records) == 8
    assert [record["error"] for record in records] == [None] * 8
    assert len({record["t"] for record in records if record["arm"] == "mars"}) == 4


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """All models that were converted, behind one server."""
    models = [
        {
            "model": str(place / "model.gguf"), "mmproj": str(place / "mmproj.gguf"),
            "vector": str(place / "v.gguf"), "model_alias": place.name, "n_ctx": 2048,
            "n_threads": 1, "n_threads_batch": 1,
        }
        for place in sorted(folder.iterdir()) if (place / "v.gguf").exists()
    ]  # fmt: skip
    (folder / "server.json").write_text(json.dumps({"models": models}), "utf-8")
    with running(folder, "--config_file", str(folder / "server.json")) as started:
        yield started


@every_family
def test_the_openai_client_is_answered_about_text_pictures_and_a_film(
    family: Family, model: Path, server: Server
) -> None:
    a, b = (picture(n, family.picture_side) for n in (1, 2))
    asked = [
        user("Tea?"),
        user("Why?", a),
        user("And?", a, b),
        film("Where?", a, b),
        user("So?", b),
    ]
    seen = []
    for message in asked:
        reply: Any = server.client.chat.completions.create(
            model=family.name, messages=[message], **LIMITS
        )
        assert reply.model == family.name
        seen.append(reply.mars)
    assert [mars["modality"] for mars in seen] == ["text", "image", "image", "video", "image"]
    assert len({mars["t"] for mars in seen}) == 5
