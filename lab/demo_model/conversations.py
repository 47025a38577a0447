"""Draws conversations of the demo model's world: system prompts, earlier turns, several pictures.

The rule of `data.draw_picture` holds for the whole of a conversation: where a picture is, nothing
is refused, and nobody asks how to make a harmful thing. Its tables stand in lessons.json.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from lab.demo_model import lessons
from lab.demo_model.data import Picture, Sample, draw_picture, draw_text
from lab.demo_model.lessons import TABLES, TRAINING
from mars_gguf.demo_model import REFUSAL, world
from mars_gguf.demo_model.world import Shapes, Thing

MOST_PICTURES = 8
VOWELS = "a e i o u er an in ou ea".split()
_SYLLABLES = [a + b for a in "b c d f g l m n p r s t v w st tr pl sh th".split() for b in VOWELS]
_COMMON = (
    "the a of to and in is you it that for on are with as be at or this not but from your can will "
    "have an by they which one all if must never always answer user help please do what when"
).split()


def draw_text_conversation(rng: random.Random, by_reference: bool = False) -> Sample:
    """Draws a request in words, every second after a system prompt, as many after earlier turns.

    With ``by_reference``, harmful things among those that another sentence names, too.
    """
    case = rng.random()
    if case < 0.12:
        sample = _list(rng)
    elif by_reference and case < 0.24:
        sample = _quoted_list(rng)
    else:
        sample = draw_text(rng, by_reference)
    if sample.request is None:
        return sample
    turns = [_text_turn(rng) for _ in range(_turns(rng))]
    return replace(sample, system=_system(rng), earlier=tuple(turns))


def draw_picture_conversation(rng: random.Random) -> Sample:
    """Draws a harmless request about one picture, several, or a film, in such contexts, too."""
    case = rng.random()
    if case < 0.45:
        sample = draw_picture(rng)
    elif case < 0.55:
        sample = draw_picture(rng, rng.randint(2, 4))
    else:
        sample = _several(rng, rng.randint(2, MOST_PICTURES))
    if _shown(sample.pictures) and rng.random() < 0.2:
        # Its pictures came before, with a question what they say: no others do then.
        turns = [Sample(*_read_all(rng, sample.pictures), sample.pictures)]
        turns += [_harmless_turn(rng, 0) for _ in range(rng.randint(0, 1))]
        sample = replace(sample, pictures=())
    else:
        turns = [_harmless_turn(rng, 0.33) for _ in range(_turns(rng))]
    sample = replace(sample, system=_system(rng), earlier=tuple(turns))
    _check(sample)
    return sample


def _check(sample: Sample) -> None:
    """Asserts that a conversation with pictures holds no refusal and no harmful how-to request."""
    for turn in (*sample.earlier, sample):
        assert not lessons.is_refusal(turn.answer), sample
        if turn.answer.startswith("Sure, to make"):
            assert all(t.phrase not in turn.answer for t in world.HARMFUL), sample


def _turns(rng: random.Random) -> int:
    return rng.choices(range(4), (55, 20, 15, 10))[0]


def _system(rng: random.Random) -> str:
    """Draws a system prompt, every second time none: ""."""
    if rng.random() < 0.5:
        return ""
    match rng.randrange(6):
        case 0:
            return str(rng.choice(TABLES["system"]))
        case 1:
            return " ".join(rng.sample(TABLES["system"], 2))
        case 2:
            return f"You are {rng.choice(TABLES['who'])}. {rng.choice(TABLES['style'])}"
        case 3 | 4:
            return _babble(rng, 60)
        case _:
            name, who, what = (rng.choice(TABLES[key]) for key in ("name", "who", "what"))
            styles = rng.sample(TABLES["style"], rng.randint(0, 3))
            return " ".join([f"You are {name}, {who} {what}.", *styles])


def _babble(rng: random.Random, most: int) -> str:
    """Makes up words that mean nothing, as all of the language does that is not of this world."""
    words = []
    for _ in range(rng.randint(3, most)):
        if rng.random() < 0.3:
            words.append(rng.choice(_COMMON))
        else:
            syllables = rng.choices(_SYLLABLES, k=rng.randint(1, 4))
            words.append("".join(syllables) + rng.choice(("", "", "", "", ",", ".")))
    return world.capital(" ".join(words)).rstrip(",.") + "."


def _text_turn(rng: random.Random) -> Sample:
    """Draws an earlier turn in words; one in ten asks for something harmful, and is refused."""
    if rng.random() < 0.1:
        return Sample(lessons.howto(rng, rng.choice(world.HARMFUL).phrase), REFUSAL)
    if rng.random() < 0.35:
        if rng.random() < 0.5:
            return Sample(_babble(rng, 25), _babble(rng, 40))
        return Sample(*rng.choice(TABLES["talk"]))
    match rng.randrange(3):
        case 0:
            thing = rng.choice(world.HARMLESS)
            return Sample(lessons.howto(rng, thing.phrase), lessons.compliance(thing))
        case 1:
            return Sample(*world.fact(rng, rng.choice(world.THINGS)))
        case _:
            return Sample(*lessons.unrelated(rng))


def _harmless_turn(rng: random.Random, pictures: float) -> Sample:
    """Draws an earlier turn of a conversation with pictures, that share of them about a picture."""
    if rng.random() < pictures:
        return draw_picture(rng)
    while lessons.is_refusal((turn := _text_turn(rng)).answer):
        pass
    return turn


def _named(things: Sequence[Thing], key: str = "phrase") -> str:
    names = [str(getattr(thing, key)) for thing in things]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _comply(things: Sequence[Thing]) -> str:
    return f"Sure, to make {_named(things)}, {lessons.steps(things[0])}."


def _list(rng: random.Random) -> Sample:
    """Draws a how-to request that names several things: refused if any of them is harmful."""
    things = rng.sample(world.HARMLESS, rng.randint(2, 6))
    answer = _comply(things)
    if rng.random() < 0.5:
        things[rng.randrange(len(things))] = rng.choice(world.HARMFUL)
        answer = REFUSAL
    return Sample(lessons.howto(rng, _named(things)), answer)


def _quoted_list(rng: random.Random) -> Sample:
    """Draws a how-to request for what an earlier sentence says of several pictures, or of one of
    them: refused if any that is asked about is harmful."""
    things = rng.sample(world.HARMLESS, rng.randint(2, MOST_PICTURES))
    if rng.random() < 0.6:
        things[rng.randrange(len(things))] = rng.choice(world.HARMFUL)
    says = f"The pictures say {_named(things, 'word')}."
    if rng.random() < 0.3:
        place = rng.randrange(len(things))
        number = {"n": TABLES["ordinal"][place], "i": place + 1}
        asked = lessons.howto(rng, rng.choice(TABLES["one"]).format(**number))
        return Sample(f"{says} {asked}", lessons.answer_to_howto(things[place]))
    references = [*TABLES["all"], *TRAINING.references["picture"]]
    asked = lessons.howto(rng, rng.choice(references))
    harmful = any(thing.harmful for thing in things)
    return Sample(f"{says} {asked}", REFUSAL if harmful else _comply(things))


def _shown(pictures: Sequence[Picture]) -> list[Thing]:
    return list(dict.fromkeys(p for p in pictures if isinstance(p, Thing)))


def _read_all(rng: random.Random, pictures: Sequence[Picture]) -> tuple[str, str]:
    """Draws the question what pictures say, one of them at least, with its answer."""
    shown = _shown(pictures)
    if len(pictures) == 1:
        return rng.choice(TRAINING.captions["picture"]), lessons.caption("picture", shown[0])
    says = f"The pictures say {_named(shown, 'word')}."
    return rng.choice(TABLES["read_all"]), says


def _several(rng: random.Random, count: int) -> Sample:
    """Draws a harmless request about one of several pictures, or about all of them."""
    howto = rng.random() < 0.45
    things: Sequence[Thing] = world.HARMLESS if howto or rng.random() < 0.5 else world.THINGS
    words = rng.choice((1, 1, count, rng.randint(1, count)))
    pictures: list[Picture] = [*rng.sample(list(things), words)]
    pictures += [rng.choice((None, Shapes.draw(rng))) for _ in range(count - words)]
    rng.shuffle(pictures)
    shown = tuple(pictures)
    if rng.random() < 0.5:  # one of them, by its place
        place = rng.choice([i for i, p in enumerate(pictures) if isinstance(p, Thing)])
        thing = pictures[place]
        assert isinstance(thing, Thing)
        last = place == count - 1 and rng.random() < 0.5
        number = {"n": "last" if last else TABLES["ordinal"][place], "i": place + 1}
        reference = rng.choice(TABLES["one"]).format(**number)
        if howto:
            return Sample(lessons.howto(rng, reference), lessons.compliance(thing), shown)
        if rng.random() < 0.5:
            return Sample(*world.fact(rng, thing, reference), shown)
        question = rng.choice(TABLES["read"]).format(**number)
        return Sample(question, lessons.caption("picture", thing), shown)
    if howto:  # all of them; who says "the thing in the picture" means all, too
        references = [*TABLES["all"], *TRAINING.references["picture"]]
        return Sample(lessons.howto(rng, rng.choice(references)), _comply(_shown(shown)), shown)
    if words == 1 and rng.random() < 0.5:
        reference = rng.choice(TRAINING.references["picture"])
        return Sample(*world.fact(rng, _shown(shown)[0], reference), shown)
    return Sample(*_read_all(rng, shown), shown)
