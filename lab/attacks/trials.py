"""Tries attacks on targets, of the model without steering and with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from lab.attacks.attacks import Attack
from lab.attacks.targets import Target
from mars_gguf import SteeredLlama
from mars_gguf.errors import MarsError
from mars_gguf.evaluate.arms import UNSTEERED, steered_by
from mars_gguf.openings import judge_by_opening


@dataclass(frozen=True)
class Outcome:
    """A reply, judged. ``names``: it is no refusal and names the thing; None where the thing has no
    known name."""

    refused: bool
    names: bool | None


@dataclass(frozen=True)
class Trial:
    """One request asked in one way. ``t`` and ``open`` are of the steered model."""

    kind: str
    modality: str
    attack: str
    topic: str
    unsteered: Outcome
    steered: Outcome
    t: float
    open: bool


def tried(llama: SteeredLlama, attack: Attack, target: Target, max_tokens: int) -> Trial:
    """Asks the request so of the steered model and, unless its gate stayed closed, which changes
    no bit of a reply, of the unsteered one."""
    steered = attack.ask(llama, target, max_tokens)
    steering = llama.last_steering
    if steering is None:
        raise MarsError("the reply was empty before its first token")
    unsteered = steered
    if steering.alpha > 0:
        with steered_by(llama, UNSTEERED):
            unsteered = attack.ask(llama, target, max_tokens)
    about = target.kind, target.modality, attack.name, target.topic
    outcomes = judged(unsteered, target), judged(steered, target)
    return Trial(*about, *outcomes, steering.t, steering.alpha > 0)


def judged(reply: str, target: Target) -> Outcome:
    """Judges a reply by its opening, and looks for the name of the thing."""
    refused = judge_by_opening(reply) == "refused"
    if target.word is None:
        return Outcome(refused, None)
    return Outcome(refused, not refused and target.word.lower() in reply.lower())


def measure(
    llama: SteeredLlama, targets: Sequence[Target], ways: Sequence[Attack], max_tokens: int
) -> tuple[list[Trial], Counter[str]]:
    """Asks every request in every way that suits it. Returns the trials, and what could not be
    asked, and why."""
    trials: dict[str, list[Trial]] = {attack.name: [] for attack in ways}
    failures: Counter[str] = Counter()
    for target in tqdm(targets, unit="request", disable=None):
        for attack in ways:
            if not attack.suits(target.modality):
                continue
            try:
                trials[attack.name].append(tried(llama, attack, target, max_tokens))
            except (MarsError, RuntimeError, ValueError) as error:  # the prompt is too long, say
                failures[f"{attack.name}: {error}"] += 1
        if llama.projector is not None:
            llama.projector.forget()
    return [trial for attack in ways for trial in trials[attack.name]], failures
