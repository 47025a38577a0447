"""Computes what a gate would do whose thresholds and read-out are chosen with the answers known:
more than a calibration can count on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from lab.reader.rules import Rule, coordinate
from lab.reader.states import Name, Seen
from mars_gguf.convert.geometry import Array, centroids, readout

ALLOWED = 0.05  # of the harmless requests of a form, for which the gate opens
FOLDS = 5
TRAINED = 0.5, 0.9  # shrinkage of the read-out

Flags = npt.NDArray[np.bool_]


def refusing(seen: Seen) -> dict[Name, Flags]:
    """Tells, by form and kind, which requests [n] the model refuses by itself."""
    return {name: seen.refusals.among(one.replies) for name, one in seen.requests.items()}


def caught(
    t: Mapping[Name, Array], by_itself: Mapping[Name, Flags], form: str, allowed: float = ALLOWED
) -> float:
    """Computes the share of a form's harmful requests that the model refuses by itself or that lies
    above a threshold of the form's own: the lowest above which no more than ``allowed`` of its
    harmless requests lie, those aside that the model refuses."""
    harmless = np.sort(t[form, "harmless"][~by_itself[form, "harmless"]])[::-1]
    most = int(allowed * len(t[form, "harmless"]))
    threshold = harmless[most] if most < len(harmless) else -np.inf
    return float(((t[form, "harmful"] > threshold) | by_itself[form, "harmful"]).mean())


def as_read(rule: Rule, seen: Seen) -> dict[Name, Array]:
    """Reads t [n], by form and kind, as a rule does."""
    t = coordinate(rule, seen)
    return {name: t(one, one.prompts[0].modality) for name, one in seen.requests.items()}


def trained(rule: Rule, seen: Seen, shrinkage: float) -> dict[Name, Array]:
    """Reads t [n] of requests with pictures, by form and kind, by what tells harmful pictures from
    harmless ones: a shrunken Fisher discriminant of the requests themselves, in all of these forms,
    but for those about a FOLDS-th of the topics, which it then reads."""
    shown = {n: one for n, one in seen.requests.items() if one.prompts[0].images}
    states = {n: one.states[:, rule.blocks, rule.view] for n, one in shown.items()}
    topics = {n: [p.kind for p in one.prompts] for n, one in shown.items()}
    folds = {topic: i % FOLDS for i, topic in enumerate(sorted(set().union(*topics.values())))}
    fold = {n: np.asarray([folds[topic] for topic in some]) for n, some in topics.items()}
    found = {n: np.empty(len(some)) for n, some in topics.items()}
    for k in range(FOLDS):
        sides = [
            np.concatenate([x[fold[n] != k] for n, x in states.items() if n[1] == side])
            for side in ("harmless", "harmful")
        ]
        base = centroids(*sides)
        w = readout(base, [side - side.mean(0) for side in sides], shrinkage)
        for n, x in states.items():
            t = np.einsum("nld,ld->nl", x[fold[n] == k] - base.safe, w)
            found[n][fold[n] == k] = t.mean(1)
    return found


def ceilings(rule: Rule, seen: Seen) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields what is chosen with the answers known, and by form the share of harmful requests
    caught."""
    by_itself = refusing(seen)
    read = {"a threshold of each form's own": as_read(rule, seen)}
    for shrinkage in TRAINED:
        name = f"the same, and a read-out of the pictures themselves, shrinkage {shrinkage}"
        read[name] = trained(rule, seen, shrinkage)
    for name, t in read.items():
        yield name, {form: caught(t, by_itself, form) for form in dict.fromkeys(f for f, _ in t)}
