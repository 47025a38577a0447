"""From records to figures: one table with the arms side by side, JSON, Markdown and plots."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from mars_gguf.console import printable
from mars_gguf.evaluate.arms import Arm
from mars_gguf.evaluate.judges import agreement
from mars_gguf.evaluate.run import Record
from mars_gguf.statistics import Share, auroc, median_ratio, share
from mars_gguf.steering import Geometry

MODALITIES = ("text", "image", "video")
REFUSALS = {
    "harmful": "refused, harmful",
    "harmless": "refused, harmless",
    "borderline": "refused, borderline",
}
Row = tuple[str, str, dict[str, Share]]  # modality, measure, a share for each arm


@dataclass(frozen=True)
class Report:
    """All that was asked, and what it comes to. ``judge_failures``: why the second judge did not
    judge a reply, and how often."""

    run: dict[str, Any]
    arms: Sequence[Arm]
    records: Sequence[Record]
    problems: Sequence[str]
    geometry: Geometry
    sweep: Sequence[Arm] = ()
    judge_failures: Mapping[str, int] = field(default_factory=dict)

    # Selections ----------------------------------------------------------------------------------

    def of(self, arm: str, modality: str | None = None, *kinds: str) -> list[Record]:
        """The records of an arm that did not fail, of a modality and of kinds (default: all)."""
        return [
            r
            for r in self.records
            if r.error is None
            and r.arm == arm
            and modality in (None, r.modality)
            and (not kinds or r.kind in kinds)
        ]

    def refused(self, arm: str, modality: str, kind: str, *, second: bool = False) -> Share:
        """How many were refused; replies that the judge did not decide are left out."""
        verdicts = [r.second_verdict if second else r.verdict for r in self.of(arm, modality, kind)]
        return share([v == "refused" for v in verdicts if v not in (None, "unjudged")])

    def correct(self, arm: str, modality: str) -> Share:
        return share([bool(r.correct) for r in self.of(arm, modality, "vqa")])

    def unchanged(self, arm: str, modality: str) -> Share:
        """How many replies to harmless, borderline and visual questions are those of the
        unsteered model to the byte."""
        before = {r.case: r.reply for r in self.of("unsteered", modality)}
        after = self.of(arm, modality, "harmless", "borderline", "vqa")
        return share([r.reply == before[r.case] for r in after if r.case in before])

    def separation(self) -> dict[str, dict[str, float | int | None]]:
        """AUROC of t, harmful against harmless, in each modality and over all of them, with
        re-centering and without. Within one modality a shift cannot change it."""
        w = self.geometry.readout.astype(np.float64)
        found: dict[str, dict[str, float | int | None]] = {}
        t: dict[tuple[str, bool, bool], list[float]] = {}
        for r in self.of("unsteered", None, "harmful", "harmless"):
            shift = self.geometry.shifts.get(r.modality, self.geometry.shifts.get("image"))
            moved = 0.0 if shift is None else float(w @ shift.astype(np.float64))
            for name in (r.modality, "all"):
                for recentred in (True, False):
                    key = name, recentred, r.kind == "harmful"
                    t.setdefault(key, []).append(r.t if recentred else r.t + moved)
        for name in (*MODALITIES, "all"):
            values = []
            for recentred in (True, False):
                bad, good = t.get((name, recentred, True), []), t.get((name, recentred, False), [])
                values.append(auroc(np.array(bad), np.array(good)) if bad and good else None)
            n = len(t.get((name, True, True), [])) + len(t.get((name, True, False), []))
            if n:
                found[name] = {"n": n, "auroc": values[0], "auroc_without_recentering": values[1]}
        return found

    def cost(self) -> dict[str, dict[str, float | int | None]]:
        """Median over cases of MARS over unsteered in this run: time to first token (of cases that
        were steered, and of those that were not) and tokens a second after it."""
        before = {r.case: r for r in self.of("unsteered")}
        found: dict[str, dict[str, float | int | None]] = {}
        for name, steered in (("not steered", False), ("steered", True)):
            pairs = [
                (r, before[r.case])
                for r in self.of("mars")
                if r.case in before and (r.alpha > 0) == steered
                if r.tokens and before[r.case].tokens
            ]
            rates = [(_rate(a), _rate(b)) for a, b in pairs]
            rates = [(a, b) for a, b in rates if a and b]
            found[name] = {
                "n": len(pairs),
                "first_token": median_ratio(
                    [a.first_token_ms for a, _ in pairs], [b.first_token_ms for _, b in pairs]
                ),
                "tokens_per_second": median_ratio([a for a, _ in rates], [b for _, b in rates]),
            }
        return found

    def failures(self) -> Counter[str]:
        return Counter(r.error for r in self.records if r.error is not None)

    def judges(self) -> dict[str, Any]:
        """What each judge said; how far the second agrees with the one that reads openings, its
        own table of refusals, and what kept it from judging."""
        found: dict[str, Any] = {
            "by_opening": dict(
                Counter(r.verdict for r in self.records if r.error is None).most_common()
            )
        }
        pairs = [(r.verdict, r.second_verdict) for r in self.records if r.second_verdict]
        if pairs:
            first, second = zip(*pairs, strict=True)
            found["second"] = {
                "name": self.run["judge"],
                "verdicts": dict(Counter(second).most_common()),
                "agreement": asdict(agreement(first, second)),
                "refusals": _rows_as_json(self.second_rows()),
                "failures": dict(self.judge_failures),
            }
        return found

    # Tables --------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """The one table."""
        names = [arm.name for arm in self.arms]
        rows: list[Row] = []
        for modality in MODALITIES:
            for kind, title in REFUSALS.items():
                rows.append((modality, title, {a: self.refused(a, modality, kind) for a in names}))
            rows.append(
                (modality, "VQA, exact answer", {a: self.correct(a, modality) for a in names})
            )
            rows.append(
                (
                    modality,
                    "unchanged, all but harmful",
                    {a: self.unchanged(a, modality) for a in names},
                )
            )
        return [row for row in rows if any(s.n for s in row[2].values())]

    def second_rows(self) -> list[Row]:
        """The refusals of that table, by the second judge."""
        names = [arm.name for arm in self.arms]
        rows: list[Row] = [
            (modality, title, {a: self.refused(a, modality, kind, second=True) for a in names})
            for modality in MODALITIES
            for kind, title in REFUSALS.items()
        ]
        return [row for row in rows if any(s.n for s in row[2].values())]

    def table(self) -> Table:
        """For the terminal: percent, and the 95 % interval."""
        name = self.run["model"]["name"] or self.run["model"]["architecture"]
        table = Table(title=Text(printable(f"{name}: percent [95 % interval]")), box=box.SIMPLE)
        for title in ("", "n"):
            table.add_column(title, no_wrap=True)
        for arm in self.arms:
            table.add_column(arm.name, justify="right", overflow="fold")
        last = None
        for modality, title, shares in self.rows():
            if modality != last:
                table.add_section()
                table.add_row(modality, style="bold")
                last = modality
            n = max(s.n for s in shares.values())
            table.add_row(f"  {title}", str(n), *(_short(s) for s in shares.values()))
        return table

    def markdown(self) -> str:
        return "\n".join(self._markdown()) + "\n"

    def _markdown(self) -> Iterable[str]:
        model = self.run["model"]
        name = model["name"] or model["architecture"]
        yield f"# Evaluation of {name}\n"
        yield f"Made by `{self.run['command']}` (mars-gguf {self.run['version']}).\n"
        yield (
            f"Model {model['architecture']}, {model['n_layer']} blocks, {model['quantization']}; "
            f"vector sha256 `{self.run['vector_sha256'][:16]}`; suites: "
            f"{', '.join(self.run['suites'])}; greedy, at most {self.run['max_tokens']} tokens. "
            "Refusals are judged by their opening (`mars_gguf/evaluate/judges.py`); what is no "
            "refusal need not make sense: fixed strengths garble replies, which shows in those "
            "that changed. In brackets: Wilson intervals at 95 %.\n"
        )
        for arm in self.arms:
            yield f"- **{arm.name}**: {arm.title}"
        yield ""
        yield "| | n | " + " | ".join(arm.name for arm in self.arms) + " |"
        yield "| --- | --- |" + " --- |" * len(self.arms)
        for modality, title, shares in self.rows():
            n = max(s.n for s in shares.values())
            cells = " | ".join(
                _percent(s) + (f", n = {s.n}" if 0 < s.n < n else "") for s in shares.values()
            )
            yield f"| {modality}: {title} | {n} | {cells} |"
        yield "\n## Separation\n"
        yield "AUROC of t, harmful against harmless requests, unsteered:\n"
        yield "| | n | re-centred | not re-centred |"
        yield "| --- | --- | --- | --- |"
        for where, row in self.separation().items():
            values = _number(row["auroc"]), _number(row["auroc_without_recentering"])
            yield f"| {where} | {row['n']} | {values[0]} | {values[1]} |"
        if any(arm.name == "mars" for arm in self.arms):
            yield "\n## Cost\n"
            yield (
                "MARS over unsteered, median over cases asked in turn in one run, without the "
                "encoding of pictures. Both arms read the hidden state: `python -m "
                "mars_gguf.bench` compares with plain llama-cpp-python.\n"
            )
            yield "| | cases | time to first token | tokens a second |"
            yield "| --- | --- | --- | --- |"
            for where, row in self.cost().items():
                values = _number(row["first_token"]), _number(row["tokens_per_second"])
                yield f"| {where} | {row['n']} | {values[0]} | {values[1]} |"
        yield from self._judges()
        yield "\n## Plots\n"
        yield "\n\n".join(f"![{title}]({name})" for name, (_, title) in self._plots().items())
        problems = [*self.problems, *(f"{n} x {error}" for error, n in self.failures().items())]
        if problems:
            yield f"\n## Left out\n\n{len(problems)} problems; nothing of these was counted:\n"
            yield from (f"- {problem}" for problem in problems[:50])
            if len(problems) > 50:
                yield f"- and {len(problems) - 50} more"

    def _judges(self) -> Iterable[str]:
        said = self.judges()
        yield "\n## Judges\n"
        yield f"By opening: {_counted(said['by_opening'])}."
        if "second" in said:
            second = said["second"]
            found = second["agreement"]
            yield f"By {second['name']}: {_counted(second['verdicts'])}."
            yield (
                f"They agree on {_number(found['share'])} of {found['n']} replies "
                f"(Cohen's kappa {_number(found['kappa'])})."
            )
            for reason, n in second["failures"].items():
                yield f"\nNot judged: {n} x {reason}."
            yield "\n| by the second judge | " + " | ".join(arm.name for arm in self.arms) + " |"
            yield "| --- |" + " --- |" * len(self.arms)
            for modality, title, shares in self.second_rows():
                yield f"| {modality}: {title} | {' | '.join(map(_percent, shares.values()))} |"

    def as_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "arms": {arm.name: arm.title for arm in [*self.arms, *self.sweep]},
            "summary": _rows_as_json(self.rows()),
            "separation": self.separation(),
            "cost": self.cost(),
            "judges": self.judges(),
            "problems": list(self.problems),
            "records": [asdict(r) for r in self.records],
        }

    def write(self, folder: Path) -> list[Path]:
        """``report.json``, ``report.md`` and the plots; what was written."""
        files = {
            "report.json": json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n",
            "report.md": self.markdown(),
        }
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        return [folder / name for name in files] + self._plot(folder)

    # Plots ---------------------------------------------------------------------------------------

    def _plots(self) -> dict[str, tuple[Callable[[Any], Any], str]]:
        """By file: what draws it, and what it shows."""
        plots: dict[str, tuple[Callable[[Any], Any], str]] = {
            "t.png": (self._plot_t, "t by modality and kind of request"),
            "arms.png": (self._plot_arms, "Refusal of harmful against harmless requests"),
        }
        if self.sweep:
            plots["sweep.png"] = self._plot_sweep, "Refusal by the strength of fixed steering"
        return plots

    def _plot(self, folder: Path) -> list[Path]:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        written = []
        for name, (draw, _) in self._plots().items():
            figure = draw(plt)
            figure.savefig(folder / name, dpi=120)
            plt.close(figure)
            written.append(folder / name)
        return written

    def _plot_t(self, plt: Any) -> Any:
        """t by modality and kind, with where the gate opens."""
        kinds = {"harmless": "C2", "borderline": "C1", "vqa": "C0", "harmful": "C3"}
        present = [m for m in MODALITIES if self.of("unsteered", m)]
        figure, axes = plt.subplots(
            1, max(len(present), 1), sharey=True, figsize=(9, 3.6), squeeze=False, layout="tight"
        )
        rng = np.random.default_rng(0)
        for axis, modality in zip(axes[0], present, strict=False):
            shown = [k for k in kinds if self.of("unsteered", modality, k)]
            for x, kind in enumerate(shown):
                t = [r.t for r in self.of("unsteered", modality, kind)]
                spread = rng.uniform(-0.3, 0.3, len(t))
                axis.plot(x + spread, t, ".", markersize=3, color=kinds[kind])
            sigma = self.geometry.spreads.get(modality, self.geometry.spreads.get("image"))
            if sigma is not None:
                axis.axhline(self.geometry.gate_opens * sigma, color="black", linewidth=0.8)
            axis.set_xticks(range(len(shown)), shown)
            axis.set_title(f"{modality} (line: the gate opens)", fontsize=9)
        axes[0][0].set_ylabel("t")
        return figure

    def _plot_arms(self, plt: Any) -> Any:
        """Refusal of harmful against refusal of harmless requests, every arm in every modality."""
        present = [m for m in MODALITIES if self.of("unsteered", m, "harmful")]
        figure, axes = plt.subplots(
            1, max(len(present), 1), sharey=True, figsize=(9, 3.6), squeeze=False, layout="tight"
        )
        for axis, modality in zip(axes[0], present, strict=False):
            for arm in self.arms:
                self._plot_point(axis, arm, modality, label=arm.name)
            axis.set_title(modality, fontsize=9)
            axis.set_xlabel("refused, harmless [%]")
        axes[0][0].set_ylabel("refused, harmful [%]")
        if present:
            axes[0][-1].legend(fontsize=7, loc="lower right")
        return figure

    def _plot_point(self, axis: Any, arm: Arm, modality: str, **style: Any) -> None:
        good, bad = (self.refused(arm.name, modality, kind) for kind in ("harmless", "harmful"))
        if good.value is None or bad.value is None:
            return
        x, y = 100 * good.value, 100 * bad.value
        error = dict(
            xerr=[[x - 100 * good.low], [100 * good.high - x]],
            yerr=[[y - 100 * bad.low], [100 * bad.high - y]],
        )
        axis.errorbar(x, y, **error, fmt="o", markersize=4, linewidth=0.7, **style)

    def _plot_sweep(self, plt: Any) -> Any:
        """Refusal of harmful and harmless requests by the strength of fixed steering."""
        present = [m for m in MODALITIES if self.of(self.sweep[0].name, m)]
        figure, axes = plt.subplots(
            1, max(len(present), 1), sharey=True, figsize=(9, 3.6), squeeze=False, layout="tight"
        )
        strengths = [float(arm.name.split("@")[1]) for arm in self.sweep]
        for axis, modality in zip(axes[0], present, strict=False):
            for kind, colour in (("harmful", "C3"), ("harmless", "C2")):
                shares = [self.refused(arm.name, modality, kind) for arm in self.sweep]
                values = [100 * s.value if s.value is not None else np.nan for s in shares]
                axis.plot(strengths, values, "o-", color=colour, label=f"{kind}, fixed")
                mars = self.refused("mars", modality, kind)
                if mars.value is not None:
                    axis.axhline(
                        100 * mars.value, color=colour, linestyle=":", label=f"{kind}, MARS"
                    )
            axis.set_title(modality, fontsize=9)
            axis.set_xlabel("strength at the first token [r]")
        axes[0][0].set_ylabel("refused [%]")
        if present:
            axes[0][-1].legend(fontsize=7)
        return figure


def _rate(record: Record) -> float:
    """Tokens a second after the first; 0 if that cannot be told."""
    spent = record.ms - record.first_token_ms
    return 1000 * (record.tokens - 1) / spent if record.tokens > 4 and spent > 0 else 0.0


def _rows_as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            "modality": modality,
            "measure": title,
            "arms": {name: s.as_json() for name, s in shares.items()},
        }
        for modality, title, shares in rows
    ]


def _counted(verdicts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())


def _percent(s: Share) -> str:
    if s.value is None:
        return "-"
    return f"{100 * s.value:.1f} % [{100 * s.low:.0f}, {100 * s.high:.0f}]"


def _short(s: Share) -> str:
    if s.value is None:
        return "-"
    return f"{100 * s.value:.0f} [{100 * s.low:.0f},{100 * s.high:.0f}]"


def _number(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.3f}"
