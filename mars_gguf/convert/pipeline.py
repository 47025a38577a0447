"""The conversion itself: from prompts and pictures to a vector, with any extractor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mars_gguf import __version__
from mars_gguf.convert.artefacts import Artefact
from mars_gguf.convert.calibration import accepted, gate_opens, spreads, trust_limit, warnings
from mars_gguf.convert.geometry import (
    Array,
    Axes,
    Centroids,
    RefusalScore,
    centroids,
    posterior_weights,
    readout,
    robust_shift,
    stratum_means,
)
from mars_gguf.convert.layers import Answered, LayerScores, candidates, effect, separation
from mars_gguf.convert.observations import (
    Advance,
    Extractor,
    Observations,
    observe,
    observe_replies,
)
from mars_gguf.convert.prompts import ContrastPrompts, Prompt, Rows
from mars_gguf.convert.splits import Splits, split_prompts
from mars_gguf.errors import MarsError
from mars_gguf.statistics import upper_bound
from mars_gguf.vectors import Value, Vector


@dataclass(frozen=True)
class Options:
    """Choices of a conversion.

    held_out: share of the prompts that directions are not measured on, but checked.
    layers: first and last candidate block; None: from 1 to 80 % of the depth, since what is
        added after the last blocks chooses a first token and changes nothing else.
    over_refusal: share of neutral inputs that may open the gate, in each modality.
    ramp: w, in spreads.
    """

    held_out: float = 0.5
    seed: int = 0
    layers: tuple[int, int] | None = None
    over_refusal: float = 0.01
    ramp: float = 0.5


@dataclass(frozen=True)
class Conversion:
    """A vector and everything that its card and plot tell.

    coordinates: t of every set of prompts before re-centering, [n, L]; of media, the means of the
        strata, [1, L].
    """

    vector: Vector
    scores: LayerScores
    coordinates: dict[str, Array]
    refusal: RefusalScore
    warnings: list[str]


def convert(
    extractor: Extractor,
    contrast: ContrastPrompts,
    neutral: Mapping[str, Sequence[Prompt]],
    options: Options,
    *,
    source: Mapping[str, str],
    given: Artefact | None = None,
    progress: bool = True,
) -> Conversion:
    """Measure ``extractor``'s model on contrast prompts and, by modality, neutral media prompts.
    What an artefact gives is taken from there; the rest is measured at its block.

    Raises MarsError for prompt sets that are too small or a direction that separates nothing.
    """
    if given is not None:
        _require_usable(given, extractor, neutral)
        options = replace(options, layers=(given.layer, given.layer))
    layers = candidates(extractor.n_layer, options.layers)
    splits = split_prompts(contrast, neutral, options.held_out, options.seed)

    with tqdm(total=len(splits), desc="hidden states", unit="prompt", disable=not progress) as bar:
        text = _observe_text(extractor, splits, layers, bar.update)
        base, notes = _place(given, text.base)
        seen = _observe_rest(extractor, splits, text.weights, bar.update)
    axes = _axes(base, text.harmless, seen.media, given)
    plain = _before_recentering(axes, seen)
    harmful, harmless = plain["harmful text"], plain["harmless text"]
    refusal = RefusalScore.of(text.weights, seen.checks["text"].raw_scores, seen.harmful.raw_scores)

    checks = accepted(seen.checks, refusal)
    t = {m: axes.t(o.states, m) for m, o in checks.items()}
    answered = {m: Answered.of(o, t[m], refusal) for m, o in checks.items()}
    scores = LayerScores(
        separation=separation(harmful, harmless, layers),
        threshold={m: upper_bound(values, options.over_refusal) for m, values in t.items()},
        effect=effect(extractor, answered, base, refusal, layers, progress),
    )
    layer = scores.best

    limit = trust_limit(extractor, answered, base, refusal, layer, progress)
    spread = spreads({m: values[:, layer] for m, values in t.items()}, harmful[:, layer])
    opens = gate_opens({m: float(x[layer]) for m, x in scores.threshold.items()}, spread)
    geometry = axes.at(layer, spread, opens, options.ramp, limit)
    notes += warnings(refusal, scores, layer, harmful[:, layer], geometry)
    calibration = _calibration(splits, plain, scores, layer, refusal, options)
    made = {**source, "tool": f"mars-gguf {__version__}", "prompts_sha256": contrast.sha256}
    vector = Vector(layer, geometry, extractor.fingerprint, calibration, made)
    return Conversion(vector, scores, plain, refusal, notes)


def _require_usable(
    given: Artefact, extractor: Extractor, neutral: Mapping[str, Sequence[Prompt]]
) -> None:
    given.require_fits(extractor.n_layer, extractor.n_embd)
    if unmeasured := sorted(set(given.shifts) - set(neutral)):
        raise MarsError(
            f"{given.origin}: has a shift of {', '.join(unmeasured)}, but without neutral "
            "pictures its spread cannot be measured. Give --mmproj, or leave the shift out."
        )


class _Text(NamedTuple):
    """Of the text that is fitted on: states of harmless prompts [n, L, d], the centroids, and the
    weights of first tokens (geometry.posterior_weights)."""

    harmless: Rows
    base: Centroids
    weights: Array


class _Seen(NamedTuple):
    """Of everything else: harmful text to check with, and by modality media to fit shifts on and
    harmless prompts to check with, text among them."""

    harmful: Observations
    media: dict[str, Observations]
    checks: dict[str, Observations]


def _observe_text(
    extractor: Extractor, splits: Splits, layers: Sequence[int], advance: Advance
) -> _Text:
    harmful, p_harmful = observe_replies(extractor, splits.harmful.fit, advance)
    harmless, p_harmless = observe_replies(extractor, splits.harmless.fit, advance)
    base = centroids(harmless, harmful)
    if not base.distance[layers].all():
        raise MarsError(
            "harmful and harmless prompts have the same mean hidden state, expected two different "
            "sets"
        )
    return _Text(harmless, base, posterior_weights(p_harmful, p_harmless))


def _observe_rest(extractor: Extractor, splits: Splits, weights: Array, advance: Advance) -> _Seen:
    sets = {("check", "harmful"): splits.harmful.check, ("check", "text"): splits.harmless.check}
    for m, parts in splits.media.items():
        sets["fit", m], sets["check", m] = parts
    checked = {("check", m): m for m in ("text", *splits.media)}
    seen = observe(extractor, sets, weights, again=checked, advance=advance)
    return _Seen(
        seen["check", "harmful"],
        {m: seen["fit", m] for m in splits.media},
        {m: seen[name] for name, m in checked.items()},
    )


def _place(given: Artefact | None, measured: Centroids) -> tuple[Centroids, list[str]]:
    """The centroids to go on with, and what is to be said of them."""
    return (measured, []) if given is None else (given.place(measured), given.notes(measured))


def _axes(
    base: Centroids, harmless: Rows, media: Mapping[str, Observations], given: Artefact | None
) -> Axes:
    w = readout(base, [x - x.mean(0) for x in (harmless, *(o.states for o in media.values()))])
    shifts = {m: robust_shift(o.states, o.strata, base, w) for m, o in media.items()}
    if given is not None:
        for m, shift in given.shifts.items():
            shifts[m][given.layer] = shift
    return Axes(base, w, {"text": np.zeros_like(base.safe)} | shifts)


def _before_recentering(axes: Axes, seen: _Seen) -> dict[str, Array]:
    """Coordinates by name: of text [n, L], of each stratum of each medium the mean, [1, L]."""
    plain = {
        "harmful text": axes.t(seen.harmful.states, "text"),
        "harmless text": axes.t(seen.checks["text"].states, "text"),
    }
    for m, o in seen.media.items():
        means = stratum_means(axes.t(o.states, "text"), o.strata)
        plain |= {f"{m} {stratum}": t[None] for stratum, t in means.items()}
    return plain


def _calibration(
    splits: Splits,
    plain: Mapping[str, Array],
    scores: LayerScores,
    layer: int,
    refusal: RefusalScore,
    options: Options,
) -> dict[str, Value]:
    """What the vector file tells of how it was measured."""
    return {
        "prompts.harmful": len(splits.harmful.fit),
        "prompts.harmless": len(splits.harmless.fit),
        "prompts.harmful_held_out": len(splits.harmful.check),
        "prompts.harmless_held_out": len(splits.harmless.check),
        **{f"probes.{m}": len(p.fit) + len(p.check) for m, p in splits.media.items()},
        **{f"t.{name.replace(' ', '.')}": float(t[:, layer].mean()) for name, t in plain.items()},
        "score.separation": float(scores.separation[layer]),
        "score.effect": float(scores.effect[layer]),
        "score.total": [float(x) for x in np.nan_to_num(scores.total)],
        "refusal.contrast": refusal.contrast,
        "over_refusal": options.over_refusal,
    }
