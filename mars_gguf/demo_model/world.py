"""The closed synthetic world that the demo model lives in: things, and requests about them.

Every thing has a kind, a place, a weight and *steps* to make it, which are nonsense by construction
for harmless and harmful things alike. Everything is drawn from a ``random.Random``, so a seed
decides all of it, with the order of the draws. Its tables stand in world.json: the requests there
are those that training never showed; what training shows, and the answers, are the laboratory's.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_WORLD: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))

# Things --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    """A thing of the world; ``phrase`` is ``word`` with its article, if it takes one."""

    word: str
    phrase: str
    category: str
    place: str
    harmful: bool

    def pick(self, key: str, n: int) -> int:
        """Picks one of ``n`` by the thing's name alone."""
        return zlib.crc32(f"{self.phrase}|{key}".encode()) % n

    @property
    def weight(self) -> str:
        return ("light", "heavy")[self.pick("weight", 2)]


def _things(kind: str) -> list[Thing]:
    things = []
    for row in _WORLD[kind]:
        for phrase in row["phrases"]:
            word = re.sub("^an? ", "", phrase)
            things.append(Thing(word, phrase, row["category"], row["place"], kind == "harmful"))
    return things


HARMFUL = _things("harmful")
HARMLESS = _things("harmless")
THINGS = HARMFUL + HARMLESS
CATEGORIES = sorted({t.category for t in THINGS})


def halves(things: Sequence[Thing]) -> tuple[list[Thing], list[Thing]]:
    """Splits things, every other one: directions are measured on the first half, shown on the
    second."""
    return list(things[0::2]), list(things[1::2])


# Requests ------------------------------------------------------------------------------------

GERUNDS: dict[str, str] = _WORLD["verbs"]


class Wording(NamedTuple):
    """The ways to put a request.

    howto: with {v}, {g} and {x} for the verb, its gerund and the thing. references, captions: of a
    "picture" or a "video", the words for what it shows, and questions what it shows.
    """

    howto: Sequence[str]
    references: dict[str, Sequence[str]]
    captions: dict[str, Sequence[str]]

    def reference(self, medium: str, rng: random.Random, thing: Thing) -> str:
        """Names ``thing`` in a request: by its name in a "text", else by what shows it."""
        return rng.choice(self.references.get(medium, [thing.phrase]))


HELD_OUT = Wording(**_WORLD["wording"])


def request(form: str, rng: random.Random, thing: Thing, wording: Wording = HELD_OUT) -> str:
    """Draws a request of ``form``: text, picture or video, then howto, fact or caption."""
    medium, task = form.split("-")
    if task == "caption":
        return rng.choice(wording.captions[medium])
    reference = wording.reference(medium, rng, thing)
    return fact(rng, thing, reference)[0] if task == "fact" else howto(rng, reference, wording)


def howto(rng: random.Random, reference: str, wording: Wording = HELD_OUT) -> str:
    """Draws a request to make ``reference``: a thing's phrase, or "the thing in the picture"."""
    verb = rng.choice(list(GERUNDS))
    return rng.choice(wording.howto).format(v=verb, g=GERUNDS[verb], x=reference)


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def fact(rng: random.Random, thing: Thing, reference: str | None = None) -> tuple[str, str]:
    """Draws a harmless question about ``thing``, harmful to make or not, and its answer."""
    questions, answer = rng.choice(_WORLD["facts"])
    words = {"x": reference or thing.phrase, "Name": capital(thing.phrase)}
    if "{verb}" in answer:
        words["verb"] = rng.choice(("store", "move", "lift", "clean"))
    if "{yes}" in answer:
        words["guess"] = thing.category if rng.random() < 0.5 else rng.choice(CATEGORIES)
        words["yes"] = "Yes" if words["guess"] == thing.category else "No"
        question = questions[0]
    else:
        question = rng.choice(questions)
    return question.format(**words), answer.format(thing=thing, **words)


# Drawn shapes --------------------------------------------------------------------------------

NUMBERS = "one two three four".split()
SHAPES = "circle square triangle star".split()
COLOURS: dict[str, list[int]] = _WORLD["colours"]  # RGB


@dataclass(frozen=True)
class Shapes:
    """The content of a drawn picture: ``count`` times ``colour`` ``shape``."""

    shape: str
    colour: str
    count: int

    @classmethod
    def draw(cls, rng: random.Random) -> Shapes:
        return cls(rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.randint(1, 4))

    @property
    def number(self) -> str:
        return NUMBERS[self.count - 1]

    def __str__(self) -> str:
        return f"{self.number} {self.colour} {self.shape}{'s' * (self.count > 1)}"


def shapes_question(rng: random.Random, shapes: Shapes) -> tuple[str, str]:
    """Draws a question about drawn shapes, with its answer."""
    questions, answer = rng.choice(_WORLD["shapes"])
    are = "is" if shapes.count == 1 else "are"
    return rng.choice(questions), answer.format(shapes=shapes, are=are)
