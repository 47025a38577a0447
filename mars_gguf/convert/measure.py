"""The conversion itself: from prompts and pictures to a vector, with any extractor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mars_gguf import __version__, steering
from mars_gguf.convert.artefacts import Artefact
from mars_gguf.convert.extract import Prompt, Push
from mars_gguf.convert.geometry import (
    Array,
    Centroids,
    LayerScores,
    RefusalScore,
    cell_means,
    centroids,
    coordinates,
    posterior_weights,
    readout,
    robust_shift,
    softmax,
)
from mars_gguf.convert.prompts import ContrastPrompts, require_enough, split
from mars_gguf.errors import MarsError
from mars_gguf.hooks import Rows
from mars_gguf.statistics import auroc, upper_bound
from mars_gguf.vectors import ModelFingerprint, Value, Vector

T = TypeVar("T")

Advance = Callable[[int], object]
Name = tuple[str, str]  # of a set of prompts: what it is for, and whose it is

# By modality, harmless prompts that the model does not refuse by itself, and their coordinates
# [n, L]: what forced steering can turn into refusals.
Answered = dict[str, tuple[list[Prompt], Array]]

LIMITS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
FORCED_LIMIT = 2.0
EFFECT_PROMPTS = 32
CLEAR_CONTRAST = 0.2  # of a RefusalScore, below which single prompts cannot be judged by it


class Session(Protocol):
    """Some prompts, decoded up to their last tokens. See mars_gguf.convert.extract.Session."""

    def observe(self) -> tuple[Rows, Rows]: ...

    def steered_each(self, pushes: Sequence[Push]) -> Iterable[Rows]: ...


class Extractor(Protocol):
    """What a conversion needs of a model."""

    n_layer: int
    n_embd: int
    fingerprint: ModelFingerprint

    def sessions(
        self, prompts: Sequence[Prompt], *, again: Collection[int] = ()
    ) -> Iterable[tuple[list[int], Session]]: ...


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
class Observations:
    """Of n prompts: hidden states [n, L, d] and raw refusal scores [n] (posterior_weights)."""

    prompts: list[Prompt]
    states: Rows
    raw_scores: Array

    @property
    def cells(self) -> list[str]:
        return [f"{p.kind}/{p.form}" for p in self.prompts]

    def where(self, keep: npt.NDArray[np.bool_]) -> Observations:
        """Those of the prompts for which ``keep`` [n] is true."""
        prompts = [p for p, kept in zip(self.prompts, keep, strict=True) if kept]
        return Observations(prompts, self.states[keep], self.raw_scores[keep])


@dataclass(frozen=True)
class Conversion:
    """A vector and everything that its card and plot tell."""

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
    require_enough(contrast.harmful, "harmful prompts")
    require_enough(contrast.harmless, "harmless prompts")
    if given is not None:
        given.require_fits(extractor.n_layer, extractor.n_embd)
        if unmeasured := sorted(set(given.shifts) - set(neutral)):
            raise MarsError(
                f"{given.origin}: has a shift of {', '.join(unmeasured)}, but without neutral "
                "pictures its spread cannot be measured. Give --mmproj, or leave the shift out."
            )
        options = replace(options, layers=(given.layer, given.layer))
    layers = _candidates(extractor.n_layer, options.layers)
    train, held = contrast.split(options.held_out, options.seed)
    halves = {m: _halves(probes, options.seed) for m, probes in neutral.items()}
    for m, parts in halves.items():
        for part in parts:
            require_enough([p.text for p in part], f"each half of the neutral prompts ({m})")

    total = len(contrast.harmful) + len(contrast.harmless) + sum(map(len, neutral.values()))
    with tqdm(total=total, desc="hidden states", unit="prompt", disable=not progress) as bar:
        harmful, p_harmful = _observe_first(extractor, _text(train.harmful), bar.update)
        harmless, p_harmless = _observe_first(extractor, _text(train.harmless), bar.update)
        base = centroids(harmless, harmful)
        if not base.distance[layers].all():
            raise MarsError(
                "harmful and harmless prompts have the same mean hidden state, expected two "
                "different sets"
            )
        notes = given.notes(base) if given is not None else []
        if given is not None:
            base = given.place(base)
        weights = posterior_weights(p_harmful, p_harmless)
        asked: dict[Name, list[Prompt]] = {
            ("contrast", "text"): _text(held.harmful),
            ("check", "text"): _text(held.harmless),
        }
        for m, (shift_half, check_half) in halves.items():
            asked["shift", m], asked["check", m] = shift_half, check_half
        # All at once: what several of them show needs to be read once.
        observed = _observe(extractor, asked, weights, bar.update)
    probes = {m: observed["shift", m] for m in halves}
    checks = {m: observed["check", m] for m in ("text", *halves)}
    held_harmful, held_harmless = observed["contrast", "text"], checks["text"]
    score = RefusalScore(
        float(held_harmless.raw_scores.mean()), float(held_harmful.raw_scores.mean())
    )
    w = readout(base, [x - x.mean(0) for x in (harmless, *(o.states for o in probes.values()))])
    shifts = {"text": np.zeros_like(base.safe)}
    shifts |= {m: robust_shift(o.states, o.cells, base, w) for m, o in probes.items()}
    if given is not None:
        for m, shift in given.shifts.items():
            shifts[m][given.layer] = shift
    raw = {
        "harmful text": coordinates(held_harmful.states, base, w),
        "harmless text": coordinates(held_harmless.states, base, w),
    }
    for m, o in probes.items():
        means = cell_means(coordinates(o.states, base, w), o.cells)
        raw |= {f"{m} {cell}": t[None] for cell, t in means.items()}
    if score.contrast >= CLEAR_CONTRAST:
        # What the model refuses by itself says nothing of over-refusal.
        checks = {m: o.where(score(o.raw_scores) < 0.5) for m, o in checks.items()}
    for m, o in checks.items():
        require_enough(
            [p.text for p in o.prompts], f"held-out harmless prompts that the model answers ({m})"
        )
    t = {m: coordinates(o.states - shifts[m], base, w) for m, o in checks.items()}

    def refused(logits: Rows) -> npt.NDArray[np.bool_]:
        return np.asarray(score(softmax(logits) @ weights) > 0.5)

    answered: Answered = {}
    for m, o in checks.items():
        kept = score(o.raw_scores) <= 0.5
        answered[m] = o.where(kept).prompts, t[m][kept]
    scores = LayerScores(
        separation=_separation(raw["harmful text"], raw["harmless text"], layers),
        threshold={m: upper_bound(values, options.over_refusal) for m, values in t.items()},
        effect=_effect(extractor, answered, base, layers, refused, progress),
    )
    layer = scores.best

    spreads = {m: max(float(values[:, layer].std()), 1e-3) for m, values in t.items()}
    # Of text both classes are known: its unit is what moves t most within either.
    spreads["text"] = max(spreads["text"], float(raw["harmful text"][:, layer].std()))
    limit = _calibrate_limit(extractor, answered, base, layer, refused, progress)
    opens = max(float(scores.threshold[m][layer]) / spreads[m] for m in t)
    float32 = {m: np.asarray(s[layer], np.float32) for m, s in shifts.items()}
    geometry = steering.Geometry(
        safe=np.asarray(base.safe[layer], np.float32),
        unsafe=np.asarray(base.unsafe[layer], np.float32),
        readout=np.asarray(w[layer], np.float32),
        shifts=float32,
        spreads=spreads,
        gate_opens=opens,
        gate_ramp=options.ramp,
        trust_limit=limit,
    )
    warnings = notes + _warnings(score, scores, layer, raw["harmful text"][:, layer], geometry)
    calibration: dict[str, Value] = {
        "prompts.harmful": len(train.harmful),
        "prompts.harmless": len(train.harmless),
        "prompts.harmful_held_out": len(held.harmful),
        "prompts.harmless_held_out": len(held.harmless),
        **{f"probes.{m}": len(p) for m, p in neutral.items()},
        **{f"t.{name.replace(' ', '.')}": float(v[:, layer].mean()) for name, v in raw.items()},
        "score.separation": float(scores.separation[layer]),
        "score.effect": float(scores.effect[layer]),
        "score.total": [float(x) for x in np.nan_to_num(scores.total)],
        "refusal.contrast": score.contrast,
        "over_refusal": options.over_refusal,
    }
    vector = Vector(
        layer,
        geometry,
        extractor.fingerprint,
        calibration,
        {**source, "tool": f"mars-gguf {__version__}", "prompts_sha256": contrast.sha256},
    )
    return Conversion(vector, scores, raw, score, warnings)


def _text(prompts: Sequence[str]) -> list[Prompt]:
    return [Prompt(text, form="text", kind="text") for text in prompts]


def _halves(probes: Sequence[Prompt], seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Split within every cell, so that both halves hold all forms and kinds."""
    cells: dict[tuple[str, str], list[Prompt]] = {}
    for probe in probes:
        cells.setdefault((probe.kind, probe.form), []).append(probe)
    lonely = [cell[0] for cell in cells.values() if len(cell) == 1]
    groups = [cell for cell in cells.values() if len(cell) > 1]
    groups += [lonely] if len(lonely) > 1 else []
    halves = [split(group, 0.5, seed) for group in groups]
    return [p for a, _ in halves for p in a], [p for _, b in halves for p in b]


def _candidates(n_layer: int, layers: tuple[int, int] | None) -> list[int]:
    first, last = layers or (1, max(1, int(0.8 * n_layer)))
    if not 1 <= first <= last < n_layer:
        raise MarsError(
            f"layers: found {first} to {last}, expected a range within 1 to {n_layer - 1}"
        )
    return list(range(first, last + 1))


def _observe(
    extractor: Extractor,
    sets: Mapping[Name, Sequence[Prompt]],
    weights: Array,
    advance: Advance,
) -> dict[Name, Observations]:
    """Observations of each of ``sets``; the checks among them will be steered, later."""
    prompts = [prompt for one in sets.values() for prompt in one]
    names = [name for name, one in sets.items() for _ in one]
    states = np.empty((len(prompts), extractor.n_layer, extractor.n_embd), np.float32)
    raw_scores = np.empty(len(prompts))
    again = {i for i, (use, _) in enumerate(names) if use == "check"}
    for indices, session in extractor.sessions(prompts, again=again):
        states[indices], logits = session.observe()
        raw_scores[indices] = softmax(logits) @ weights
        advance(len(indices))
    observed, start = {}, 0
    for name, one in sets.items():
        part = slice(start, start := start + len(one))
        observed[name] = Observations(list(one), states[part], raw_scores[part])
    return observed


def _observe_first(
    extractor: Extractor, prompts: Sequence[Prompt], advance: Advance
) -> tuple[Rows, Array]:
    """Hidden states [n, L, d] and mean first-token probabilities [V]."""
    states = np.empty((len(prompts), extractor.n_layer, extractor.n_embd), np.float32)
    total: Array = np.zeros(1)
    for indices, session in extractor.sessions(prompts):
        states[indices], logits = session.observe()
        total = total + softmax(logits).sum(0, dtype=np.float64)
        advance(len(indices))
    return states, total / len(prompts)


def _separation(harmful: Array, harmless: Array, layers: Sequence[int]) -> Array:
    separation = np.full(harmful.shape[1], np.nan)
    for layer in layers:
        separation[layer] = auroc(harmful[:, layer], harmless[:, layer])
    return separation


def _additions(base: Centroids, t: Array, layer: int, limit: float) -> Rows:
    """What forced steering (gate fully open) adds at ``layer``: [n, d] for coordinates [n]."""
    alpha = steering.strength(t, np.ones_like(t), float(base.distance[layer]), limit)
    unit = base.direction[layer] / base.distance[layer]
    return np.asarray(alpha[:, None] * unit, np.float32)


def _effect(
    extractor: Extractor,
    answered: Answered,
    base: Centroids,
    layers: Sequence[int],
    refused: Callable[[Rows], npt.NDArray[np.bool_]],
    progress: bool,
) -> Array:
    """Share of answered prompts that forced steering turns into refusals, the least over the
    modalities, [L]; measured on EFFECT_PROMPTS prompts of each modality, 0 without any."""
    effect = np.full(extractor.n_layer, np.nan)
    effect[layers] = 1.0
    chosen = {
        m: _spread_out(range(len(prompts)))[:EFFECT_PROMPTS] for m, (prompts, _) in answered.items()
    }
    total = len(layers) * sum(map(len, chosen.values()))
    with tqdm(total=total, desc="layer scores", unit="decode", disable=not progress) as bar:
        for modality, (prompts, t) in answered.items():
            positions = np.asarray(chosen[modality], int)
            count = np.zeros(len(layers))
            for indices, session in extractor.sessions([prompts[i] for i in positions]):
                at = t[positions[indices]]
                pushes = [(k, _additions(base, at[:, k], k, FORCED_LIMIT)) for k in layers]
                for k, logits in enumerate(session.steered_each(pushes)):
                    count[k] += refused(logits).sum()
                    bar.update(len(indices))
            effect[layers] = np.minimum(effect[layers], count / max(1, len(positions)))
    return effect


def _spread_out(items: Sequence[T]) -> list[T]:
    """The items in an order in which any beginning is a fair sample of all cells."""
    return [item for offset in range(7) for item in items[offset::7]]


def _calibrate_limit(
    extractor: Extractor,
    answered: Answered,
    base: Centroids,
    layer: int,
    refused: Callable[[Rows], npt.NDArray[np.bool_]],
    progress: bool,
) -> float:
    """The trust limit t_max: the least of LIMITS at which forced steering refuses nearly as much
    of every modality's answered prompts as at the best."""
    rates = np.ones(len(LIMITS))
    total = sum(len(prompts) for prompts, _ in answered.values())
    with tqdm(total=total, desc="trust limit", unit="prompt", disable=not progress) as bar:
        for prompts, t in answered.values():
            count = np.zeros(len(LIMITS))
            for indices, session in extractor.sessions(prompts):
                at = t[indices, layer]
                pushes = [(layer, _additions(base, at, layer, limit)) for limit in LIMITS]
                for k, logits in enumerate(session.steered_each(pushes)):
                    count[k] += refused(logits).sum()
                bar.update(len(indices))
            rates = np.minimum(rates, count / max(1, len(prompts)))
    return LIMITS[int(np.argmax(rates >= 0.95 * rates.max()))]


def _warnings(
    score: RefusalScore, scores: LayerScores, layer: int, t_harmful: Array, g: steering.Geometry
) -> list[str]:
    found = []
    if score.contrast < CLEAR_CONTRAST:
        found.append(
            "The model's first tokens hardly differ between harmful and harmless prompts "
            f"(contrast {score.contrast:.2f} of 1): it seldom refuses, so there is little refusal "
            "to steer towards."
        )
    if scores.separation[layer] < 0.9:
        found.append(
            f"Held-out harmful and harmless text overlap at the best block (AUROC "
            f"{scores.separation[layer]:.2f})."
        )
    if not scores.total[layer]:
        found.append(
            "No block has separation, effect and headroom at once (a total above 0): block "
            f"{layer} is chosen by separation and what headroom there is."
        )
    if scores.effect[layer] < 0.5:
        found.append(
            f"Forced steering turned only {scores.effect[layer]:.0%} of harmless prompts into "
            "refusals."
        )
    if g.gate_opens * g.spreads["text"] > float(np.median(t_harmful)):
        found.append("The gate stays closed for half of the held-out harmful text prompts.")
    return found
