"""Goes through the steps of a conversion: from prompts and pictures to a vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from mars_gguf import __version__
from mars_gguf.convert.artefacts import Artefact
from mars_gguf.convert.calibration import (
    LIMITS,
    Certificate,
    accepted,
    budgets,
    certify,
    largest_budgets,
    spreads,
    thresholds,
    trust_limit,
    warnings,
)
from mars_gguf.convert.choices import Calibration
from mars_gguf.convert.extractor import Extractor, Observations, Opening, Store, observe
from mars_gguf.convert.geometry import Array, Axes, centroids, readout, robust_shift
from mars_gguf.convert.layers import (
    FINALISTS,
    FORCED_LIMIT,
    TRIED,
    Forced,
    LayerScores,
    Place,
    Trial,
    candidates,
    force,
    score_layers,
)
from mars_gguf.convert.prompt_sets import PromptSets
from mars_gguf.convert.prompts import MIN_PROMPTS, Prompt, Rows
from mars_gguf.convert.refusals import N_TOKENS, Refusals
from mars_gguf.convert.splits import Splits, split_prompts
from mars_gguf.errors import MarsError
from mars_gguf.progress import Bar, progress_bar
from mars_gguf.steering import Geometry
from mars_gguf.vectors import Value, Vector

REPLIES = 48  # read of harmful and of harmless prompts
EXAMPLES = 2  # of forced replies, to show
RAMP = 0.05  # of the gate, in spreads: half a push makes fewer refusals


@dataclass(frozen=True)
class Measurement:
    """A vector and everything that its card and plot tell.

    coordinates: t of sets of held-out prompts before re-centering, [n, L].
    examples: prompts and their replies under forced steering at the chosen block.
    """

    vector: Vector
    scores: LayerScores
    coordinates: dict[str, Array]
    certificate: Certificate
    examples: list[tuple[Prompt, Opening]]
    warnings: list[str]


def measure_vector(
    extractor: Extractor,
    sets: PromptSets,
    calibration: Calibration,
    *,
    source: Mapping[str, str],
    given: Artefact | None = None,
    store: Store | None = None,
    progress: bool = True,
) -> Measurement:
    """Measures ``extractor``'s model on ``sets`` and calibrates its vector.

    given: what was measured elsewhere is taken from there, the rest measured at its block.
    store: what it holds is not measured again.

    Raises MarsError for prompt sets that are too small or a direction that separates nothing.
    """
    if given is not None:
        given.require_fits(extractor.n_layer, extractor.n_embd)
        calibration = replace(calibration, layers=(given.layer, given.layer))
    layers = candidates(extractor.n_layer, calibration.layers)
    splits = split_prompts(sets.contrast, sets.media, sets.contexts, calibration.seed)

    # Observing a prompt and reading a reply take about the same time: each is a step of the bar.
    total = len(splits) + TRIED * _n_places(min(FINALISTS, len(layers)))
    with progress_bar("Measuring", total, "prompts", shown=progress) as bar:
        observer = _Observer(extractor, bar, store)
        fitted = _fit(observer, splits, layers, given)
        selecting = _coordinates(observer, splits, "select", fitted.axes)
        certifying = _coordinates(observer, splits, "certify", fitted.axes)
        selected = _select(observer, fitted, selecting, layers, calibration.over_refusal)
    geometry, certificate = _certify(fitted, selected, selecting, certifying)
    warned = warnings(
        fitted.refusals, selected.scores, selected.layer, certificate, selected.budgets
    )
    vector = Vector(
        selected.layer,
        geometry,
        extractor.fingerprint,
        _account(splits, certificate, selected),
        {**source, "tool": f"mars-gguf {__version__}", "prompts_sha256": sets.contrast.sha256},
    )
    return Measurement(
        vector,
        selected.scores,
        _before_recentering(fitted.axes, certifying),
        certificate,
        selected.examples,
        [*sets.notes, *fitted.notes, *warned],
    )


def _n_places(n_blocks: int) -> int:
    """Counts the places to steer at: each block at one limit, one of them at all."""
    return n_blocks + len(LIMITS)


class _Observer(NamedTuple):
    """Observes prompts, shows how far it is on a ``bar``, and keeps what was seen."""

    extractor: Extractor
    bar: Bar
    store: Store | None

    def observe(self, prompts: Sequence[Prompt], **options: Any) -> Observations:
        return observe(self.extractor, prompts, self.bar.advance, store=self.store, **options)

    def observe_together(
        self, sets: Mapping[str, Sequence[Prompt]], **options: Any
    ) -> dict[str, Observations]:
        """Observes several sets at once, so that what their prompts begin with is decoded once."""
        seen = self.observe([p for some in sets.values() for p in some], **options)
        return dict(zip(sets, seen.parts([len(some) for some in sets.values()]), strict=True))

    def with_replies(self, prompts: Sequence[Prompt]) -> tuple[Rows, list[Opening]]:
        """Observes hidden states [n, L, d], and replies to the first REPLIES of the prompts."""
        asked = self.observe(prompts[:REPLIES], n_tokens=N_TOKENS)
        rest = self.observe(prompts[REPLIES:])
        return np.concatenate([asked.states, rest.states]), asked.replies


class _Fitted(NamedTuple):
    """Holds what is fitted, and sentences about it for the user."""

    axes: Axes
    refusals: Refusals
    notes: list[str]


def _fit(
    observer: _Observer,
    splits: Splits,
    layers: Sequence[int],
    given: Artefact | None,
) -> _Fitted:
    harmful, harmful_replies = observer.with_replies(splits.harmful.fit)
    harmless, harmless_replies = observer.with_replies(splits.harmless.fit)
    measured = centroids(harmless, harmful)
    if not measured.distance[layers].all():
        raise MarsError(
            "harmful and harmless prompts have the same mean hidden state, expected two different "
            "sets"
        )
    plain = set(map(id, splits.harmless.fit))
    neutral = observer.observe_together(
        {m: [p for p in x.fit if id(p) not in plain] for m, x in splits.neutral.items()}
    )
    states = {m: seen.states for m, seen in neutral.items()}
    states["text"] = np.concatenate([harmless, states["text"]])
    base, notes = measured, list[str]()
    if given is not None:
        base, notes = given.place(measured), [given.note(measured)]
    of_text = states["text"].mean(0, dtype=np.float64)
    w = readout(base, [x - x.mean(0) for x in states.values()], neutral=of_text)
    shifts = {"text": np.zeros_like(base.safe)}
    for m, seen in neutral.items():
        if m != "text":
            shifts[m] = robust_shift(seen.states, [p.stratum for p in seen.prompts], base, w)
    refusals = Refusals.of(harmful_replies, harmless_replies)
    return _Fitted(Axes(base, w, shifts), refusals, notes)


class _HeldOut(NamedTuple):
    """Holds coordinates [n, L] of one part: of harmful text, and neutral prompts by modality."""

    harmful: Observations
    neutral: dict[str, Observations]


def _coordinates(observer: _Observer, splits: Splits, part: str, axes: Axes) -> _HeldOut:
    """Observes the ``part`` of all splits, along ``axes``."""

    def read(prompts: Sequence[Prompt], states: Rows) -> Rows:
        found = np.empty(states.shape[:2], np.float32)
        modalities = np.asarray([p.modality for p in prompts])
        for m in set(modalities.tolist()):
            found[modalities == m] = axes.t(states[modalities == m], m)
        return found

    sets = {"harmful": splits.harmful, **splits.neutral}
    parts = {name: getattr(split, part) for name, split in sets.items()}
    seen = observer.observe_together(parts, stage=axes.sha256, read=read)
    return _HeldOut(seen.pop("harmful"), seen)


class _Selected(NamedTuple):
    """Holds what is selected: the block (the best of the ``scores``) and the trust limit; the share
    of neutral inputs that may open the gate, by modality; and replies there."""

    scores: LayerScores
    limit: float
    budgets: dict[str, float]
    examples: list[tuple[Prompt, Opening]]

    @property
    def layer(self) -> int:
        return self.scores.best


def _select(
    observer: _Observer, fitted: _Fitted, seen: _HeldOut, layers: Sequence[int], given: float | None
) -> _Selected:
    answered = accepted(seen.neutral, fitted.refusals)
    t = {m: one.states for m, one in answered.items()}
    harmful = seen.harmful.states
    scores = score_layers(harmful, t, layers, largest_budgets(t, given))
    trials, finalists = _trials(seen.harmful, answered, fitted.refusals), scores.finalists()
    bar, n_tried = observer.bar, sum(len(trial.sample().prompts) for trial in trials)
    bar.expect(n_tried * _n_places(len(finalists)))

    def forced(trials: Sequence[Trial], places: list[Place]) -> list[Forced]:
        base, refusals, some = fitted.axes.base, fitted.refusals, [t.sample() for t in trials]
        return force(observer.extractor, some, base, refusals, places, bar.advance)

    found = forced(trials, [(layer, FORCED_LIMIT) for layer in finalists])
    scores.effect[finalists] = [one.rate for one in found]
    best = scores.best
    beyond = [trial.where(trial.t[:, best] > scores.thresholds["text"][best]) for trial in trials]
    if all(len(trial.prompts) >= MIN_PROMPTS for trial in beyond):
        trials = beyond  # what the gate opens for
    tried = dict(zip(LIMITS, forced(trials, [(best, x) for x in LIMITS]), strict=True))
    limit = trust_limit({x: one.rate for x, one in tried.items()})
    chosen = budgets({m: values[:, best] for m, values in t.items()}, harmful[:, best], given)
    examples = list(zip(trials[0].sample().prompts, tried[limit].replies, strict=True))[:EXAMPLES]
    return _Selected(scores, limit, chosen, examples)


def _certify(
    fitted: _Fitted, selected: _Selected, selecting: _HeldOut, certifying: _HeldOut
) -> tuple[Geometry, Certificate]:
    """Sets the gate at the chosen block and counts what opens it."""
    layer, refusals = selected.layer, fitted.refusals
    neutral = {
        m: replace(one, states=one.states[:, layer])
        for m, one in accepted(certifying.neutral, refusals).items()
    }
    t = {m: one.states for m, one in neutral.items()}
    opens = thresholds(neutral, selecting.harmful.states[:, layer], selected.budgets)
    geometry = fitted.axes.at(layer, spreads(t), opens, RAMP, selected.limit)
    harmful, text = certifying.harmful, certifying.neutral["text"]
    refused = [float(refusals.begin(one.tokens).mean()) for one in (harmful, text)]
    return geometry, certify(neutral, harmful.states[:, layer], opens, (refused[0], refused[1]))


def _trials(
    harmful: Observations, answered: Mapping[str, Observations], refusals: Refusals
) -> list[Trial]:
    """Chooses what steering is tried on: harmful prompts that the model answers, or where there are
    too few, harmless ones of every modality, which resist more."""
    complied = harmful.where(~refusals.begin(harmful.tokens))
    some = [complied] if len(complied.prompts) >= MIN_PROMPTS else answered.values()
    return [Trial(seen.prompts, seen.states) for seen in some]


def _before_recentering(axes: Axes, seen: _HeldOut) -> dict[str, Array]:
    """Moves coordinates [n, L] back to before re-centering, by the names of the sets."""
    found = {"harmful text": seen.harmful.states}
    for m, neutral in seen.neutral.items():
        moved = np.einsum("ld,ld->l", axes.readout, axes.shifts[m])
        found[f"neutral {m}"] = neutral.states + moved
    return found


def _account(splits: Splits, certificate: Certificate, selected: _Selected) -> dict[str, Value]:
    """Says how the vector was measured, for its file."""
    scores, layer = selected.scores, selected.layer
    sets = {"harmful": splits.harmful, **{f"neutral.{m}": x for m, x in splits.neutral.items()}}
    return {
        **{
            f"prompts.{name}.{part}": len(some)
            for name, split in sets.items()
            for part, some in split._asdict().items()
        },
        **{f"opened.{row.modality}": str(row) for row in certificate.neutral if not row.group},
        "opened.harmful_text": str(certificate.caught),
        "refused.harmful_text": certificate.refused[0],
        "refused.neutral_text": certificate.refused[1],
        "score.separation": float(scores.separation[layer]),
        "score.reach": float(scores.reach[layer]),
        "score.effect": float(scores.effect[layer]),
        **{f"over_refusal.{m}": budget for m, budget in selected.budgets.items()},
    }
