"""Decides, by policies, whether the state of a prompt is pushed; and reports what was decided.

Pure: states in, decisions out. `Policy.decide` (mars_gguf.steering) says how far a state is pushed;
mars_gguf.runtime.pushing pushes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.runtime.tap import Rows
from mars_gguf.steering import Decision, Policy

Way = Literal["cvec", "inline"]
Position = Literal["prompt", "thought", "answer"]
UNREACHED = (
    "the reply ended before its answer began, in its thought: nothing was judged or steered. Allow "
    "more tokens"
)


class Seen(NamedTuple):
    """The states of a prompt's last token, by block, [n_embd] each, and the prompt's modality.
    ``picture``: the one of a turn's that it shows alone, by its place from 1, or the first of a few
    that it shows; None of a whole prompt."""

    states: Mapping[int, Rows]
    modality: str
    picture: int | None = None


class Isolated(NamedTuple):
    """A prompt that shows several pictures, ``seen`` with each of them alone, () of other prompts;
    None where it was not, because nothing steered. ``seconds``: that took, the encoding of pictures
    aside."""

    seen: tuple[Seen, ...] | None = ()
    seconds: float = 0.0


NOT_ISOLATED, UNSEEN = Isolated(), Isolated(None)


class Judged(NamedTuple):
    """A policy, its decision on a prompt, and the prompt that t, z and gate are of: the whole one,
    or one with a picture alone."""

    policy: Policy
    decision: Decision
    seen: Seen

    @property
    def opens(self) -> bool:
        """Whether the state is to be pushed."""
        return self.decision.alpha > 0

    @property
    def push(self) -> Rows:
        """The vector to add to the state, [n_embd]."""
        return self.policy.push(self.decision.alpha)


class Verdict(NamedTuple):
    """The decisions of all policies on one prompt; ``chosen`` is the one that is followed: the
    strongest that opens (by alpha / D), else the one that is nearest to opening."""

    judged: tuple[Judged, ...]

    @property
    def chosen(self) -> Judged:
        def force(one: Judged) -> tuple[float, float]:
            return one.decision.alpha / one.policy.geometry.distance, one.decision.z

        return max(self.judged, key=force)


def blocks_of(policies: Sequence[Policy]) -> list[int]:
    """The blocks whose states ``policies`` judge, rising."""
    return sorted({policy.block for policy in policies})


def seen_by(blocks: Sequence[int], isolated: Isolated) -> tuple[Seen, ...]:
    """The prompts with one picture alone that policies of these ``blocks`` judge. Raises
    SteeringError if they were seen for other policies."""
    if isolated.seen is None or any(not one.states.keys() >= set(blocks) for one in isolated.seen):
        raise SteeringError(
            "what steers has changed since the prompt was read, and its pictures "
            "were not seen alone for it. Ask again. Nothing was generated."
        )
    return isolated.seen


def judge(policies: Sequence[Policy], whole: Seen, isolated: Sequence[Seen] = ()) -> Verdict:
    """Judge a prompt as a ``whole``, and ``isolated``, with each of several pictures alone.

    Raises ModelError for a modality that was not measured, SteeringError for a state that is not
    finite.
    """
    judged = []
    for policy in policies:
        state, *others = ((seen.states[policy.block], seen.modality) for seen in (whole, *isolated))
        try:
            decision = policy.decide(*state, others)
        except KeyError as error:
            measured = ", ".join(sorted(policy.geometry.spreads, key=lambda m: (m != "text", m)))
            raise ModelError(
                f"the prompt has media ({error.args[0]}), but the vector was measured on "
                f"{measured} only. Convert with --mmproj."
            ) from None
        except FloatingPointError as error:
            raise SteeringError(f"{error}. Nothing was generated.") from error
        by = whole if decision.isolated is None else isolated[decision.isolated]
        judged.append(Judged(policy, decision, by))
    return Verdict(tuple(judged))


@dataclass(frozen=True)
class Steering:
    """The record of what steering did to one reply.

    modality: of the prompt that t is of: "text"; "image" if it shows still pictures, one or
        several; "video" if it shows a film.
    t: where the state lies, 0 at the mean of harmless text, 1 at that of harmful text.
    z: how far t lies beyond the threshold, in spreads.
    gate: from 0, shut, to 1, fully open.
    alpha: how far the state was pushed, in its units; 0 means that nothing was changed.
    layer: the block that was judged, and pushed.
    way: "cvec" or "inline", None if nothing was changed.
    milliseconds: spent on deciding and steering, beyond plain inference.
    position: the token that was judged: the last of the "prompt"; the one that begins the
        "thought", if that counts; or the one before the "answer", after the thought. None while a
        reply has not come to its answer: then t, z and gate are None, too.
    policies: where several policies judge, t, z, gate, alpha, layer (and picture) of each, by its
        name.
    picture: the picture or film of the turn that t, z and gate are of, by its place from 1: of
        several in the conversation it lies, shown alone, farthest beyond its threshold, which is
        higher then. None where they are of the whole prompt, as alpha always is.
    """

    modality: str
    t: float | None
    z: float | None
    gate: float | None
    alpha: float
    layer: int | None
    way: Way | None
    milliseconds: float
    position: Position | None = "prompt"
    policies: Mapping[str, Mapping[str, float]] | None = None
    picture: int | None = None

    @property
    def note(self) -> str | None:
        """The remark on a reply that was not judged."""
        return UNREACHED if self.position is None else None

    def report(self) -> dict[str, Any]:
        """As JSON has it; the note, the policies and the picture if there are any."""
        fields = asdict(self) | {"note": self.note}
        some = ("note", "policies", "picture")
        return {k: v for k, v in fields.items() if v is not None or k not in some}


def steering_of(verdict: Verdict, way: Way, seconds: float, position: Position) -> Steering:
    """The report of a verdict that was followed."""
    chosen, decision, seen = verdict.chosen
    each = {
        policy.name: {"t": t, "z": z, "gate": gate, "alpha": alpha, "layer": policy.block}
        | ({} if by.picture is None else {"picture": by.picture})
        for policy, (t, z, gate, alpha, _), by in verdict.judged
    }
    return Steering(
        seen.modality,
        *decision[:4],
        layer=chosen.block,
        way=way if decision.alpha > 0 else None,
        milliseconds=1000 * seconds,
        position=position,
        policies=each if len(each) > 1 else None,
        picture=seen.picture,
    )


def unreached(modality: str, block: int) -> Steering:
    """The report of a reply that has not come to its answer."""
    return Steering(modality, None, None, None, 0.0, block, None, 0.0, position=None)
