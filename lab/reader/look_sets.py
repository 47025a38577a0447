"""Makes the prompts that looks are compared on: contents and wordings of the converter's data, each
in one part alone.

What is fitted on, certified on and caught are three parts that have no content and no wording in
common. A form is the number of a wording, a kind what a prompt is about: "harmful", "harmless" or
"borderline". A fourth part, "unseen", has wordings and contents of its own (unseen.json), written
without sight of the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.resources import files
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, Literal

from lab.reader.grid import TooLong, Writer
from mars_gguf.convert.prompts import Prompt

Part = Literal["fit", "certify", "judge"]
KINDS = "harmful", "harmless", "borderline"
CONTENTS: dict[Part, float] = {
    "fit": 0.5,
    "certify": 0.2,
    "judge": 0.3,
}  # share of the contents of a part
WORDINGS: dict[Part, float] = {"fit": 0.3, "certify": 0.35, "judge": 0.35}
TEXTS = {"fit": 160, "certify": 60, "judge": 48}  # prompts of a kind without pictures
EACH = 2  # contents of a kind that a wording about pictures meets
ASKED = {"harmful": 4, "harmless": 3, "borderline": 4}  # the same, with the content as text
EACH_UNSEEN = 12  # contents of a kind that an unseen wording meets
PLAIN = {"name": "plain", "kind": "instruction", "text": "{}"}

Line = dict[str, Any]
Meeting = tuple[str, Iterator[tuple[str, str, str]]]
"""A wording's name, and without end the contents that it meets: what is shown, what is asked of it,
and the topic."""


def sets(writer: Writer) -> dict[str, list[Prompt]]:
    """Makes all prompts by name, such as "judge-image-harmful". No harmful picture is fitted or
    certified on. Of "fit-asked" the wordings are those around pictures, after the content as text.
    """
    found = {}
    for kind in KINDS:
        for part in CONTENTS:
            found[f"{part}-text-{kind}"] = list(_texts(part, kind))
            if kind != "harmful" or part == "judge":
                found[f"{part}-image-{kind}"] = list(
                    chain.from_iterable(
                        islice(_shown(writer, met), EACH) for met in _meetings(part, kind)
                    )
                )
        asked = (islice(_asked(met), ASKED[kind]) for met in _meetings("fit", kind))
        found[f"fit-asked-{kind}"] = list(chain.from_iterable(asked))
        found |= _unseen(writer, kind)
    return found


def _texts(part: Part, kind: str) -> Iterator[Prompt]:
    """Yields prompts of a kind in text: every second one as it is, the others in the wordings in
    turn; one of four about a thing."""
    wordings = _of(part, _read("text_wordings"), WORDINGS)
    framed = cycle([w for w in wordings if w["kind"] == "instruction"])
    naming = cycle([w for w in wordings if w["kind"] == "subject"])
    requests, things = cycle(_requests(part, kind)), cycle(_things(part, kind))
    for i in range(TEXTS[part]):
        if i % 4 == 3:
            wording, thing = next(naming), next(things)
            text = wording["text"].replace("{thing}", thing["thing"])
            yield Prompt(text.replace("{verb}", thing["verb"]), (), wording["name"], thing["topic"])
            continue
        request, wording = next(requests), next(framed) if i % 2 else PLAIN
        text = wording["text"].replace("{}", request["request"])
        yield Prompt(text, (), wording["name"], request["topic"])


def _meetings(part: Part, kind: str) -> Iterator[Meeting]:
    """Yields the wordings around a picture, each with the contents of a kind in turn."""
    wordings = _of(part, _read("picture_wordings"), WORDINGS)
    return _meet(wordings, cycle(_requests(part, kind)), cycle(_things(part, kind)))


def _meet(
    wordings: Sequence[Line], requests: Iterator[Line], things: Iterator[Line]
) -> Iterator[Meeting]:
    for i, wording in enumerate(wordings):
        if wording["kind"] == "subject" or (wording["kind"] == "any" and i % 2):
            yield wording["name"], _contents(wording["text"], "thing", things)
        else:
            yield wording["name"], _contents(wording["text"], "request", requests)


def _contents(text: str, key: str, lines: Iterator[Line]) -> Iterator[tuple[str, str, str]]:
    for line in lines:
        yield line[key], text.replace("{verb}", line.get("verb", "")), line["topic"]


def _shown(writer: Writer, met: Meeting) -> Iterator[Prompt]:
    """Yields prompts with a picture of each content that has room in one."""
    name, contents = met
    for shown, text, topic in contents:
        with suppress(TooLong):
            yield Prompt(text, (writer.picture(shown),), name, topic)


def _asked(met: Meeting) -> Iterator[Prompt]:
    """Yields prompts with each content as text before the wording."""
    name, contents = met
    for shown, text, topic in contents:
        yield Prompt(f"{shown}\n{text}", (), name, topic)


def _unseen(writer: Writer, kind: str) -> Iterator[tuple[str, list[Prompt]]]:
    """Yields the unseen prompts of a kind, as text and with pictures; each wording meets
    EACH_UNSEEN of the contents, in turn."""
    every = json.loads((Path(__file__).parent / "unseen.json").read_text(encoding="utf-8"))
    lines = [line | {"request": line["text"]} for line in every["requests"] if line["kind"] == kind]
    turns, texts = cycle(lines), []
    for wording in (PLAIN, *every["text_forms"]):
        for line in islice(turns, EACH_UNSEEN):
            text = wording["text"].replace("{}", line["request"]).replace("{thing}", line["thing"])
            text = text.replace("{verb}", line["verb"])
            texts.append(Prompt(text, (), wording["name"], line["topic"]))
    yield f"unseen-text-{kind}", texts
    turns = cycle(lines)
    pictures = (
        islice(_shown(writer, met), EACH_UNSEEN)
        for met in _meet(every["picture_forms"], turns, turns)
    )
    yield f"unseen-image-{kind}", list(chain.from_iterable(pictures))


def _requests(part: Part, kind: str) -> list[Line]:
    if kind == "borderline":
        lines = [_request(line["prompt"], line["topic"]) for line in _read("borderline_text")]
    else:
        own = [_request(line["request"], line["topic"]) for line in _read(f"{kind}_requests")]
        pairs = _read("contrast")
        lines = own + [_request(line[kind], f"pair {line['id']}") for line in pairs]
    return _of(part, lines, CONTENTS)


def _request(text: str, topic: str) -> Line:
    return {"request": text, "topic": topic, "key": topic}


def _things(part: Part, kind: str) -> list[Line]:
    if kind == "borderline":
        lines = _read("borderline_subjects")
    else:
        lines = [
            {"verb": pair["verb"], "thing": pair[kind], "topic": f"thing {pair['harmless']}"}
            for pair in _read("subjects")
        ]
    return _of(part, [line | {"key": line["topic"]} for line in lines], CONTENTS)


def _of(part: Part, lines: Sequence[Line], shares: dict[Part, float]) -> list[Line]:
    """Chooses the lines of a part, by a hash of what they are about, in an order of its own."""
    bounds, reached = {}, 0.0
    for name, share in shares.items():
        bounds[name] = (reached, reached + share)
        reached += share
    low, high = bounds[part]
    chosen = [line for line in lines if low <= _hash(line["key"]) < high]
    return sorted(chosen, key=lambda line: _hash(json.dumps(line, sort_keys=True)))


def _hash(text: str) -> float:
    """Hashes ``text`` to a number from 0 to 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _read(name: str) -> list[Line]:
    """Reads a file of the converter's data; a wording's name and key is its number there."""
    text = (files("mars_gguf.convert") / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    if name.endswith("wordings"):
        return [line | {"name": f"{name} {i}", "key": line["text"]} for i, line in enumerate(lines)]
    return lines
