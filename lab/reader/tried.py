"""``python -m lab.reader.tried MODEL.gguf -o DIR`` tells what alternatives to the rules of the
converter do on a text model behind the constructed projector, in one table (DIR/tried.md).

What is measured stays in DIR/parts, beside the projector and the neutral pictures that `report`
makes there, and is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lab.reader import report, suite
from lab.reader.ceilings import ALLOWED, FOLDS, ceilings
from lab.reader.grid import TooLong, Writer
from lab.reader.projector import known_tokens
from lab.reader.rules import BUDGETS, Rule, coordinate, judged, middle_blocks, refused, rules
from lab.reader.states import LAST, Name, Seen, TailExtractor, measure
from mars_gguf.console import command
from mars_gguf.convert.choices import Prompts
from mars_gguf.convert.extractor import Advance, observe
from mars_gguf.convert.geometry import SHRINKAGE, centroids
from mars_gguf.convert.layers import Trial, force
from mars_gguf.convert.prompt_sets import gather
from mars_gguf.convert.prompts import Prompt
from mars_gguf.convert.refusals import N_TOKENS
from mars_gguf.convert.resuming import ResumeFile, code_sha256
from mars_gguf.convert.splits import split_prompts
from mars_gguf.evaluate.cases import evenly
from mars_gguf.files import atomic
from mars_gguf.markdown import table
from mars_gguf.runtime.weights import require_gguf

FORMS = ("text", "instruction-1", "instruction-2", "instruction-3", "subject-1", "subject-2")
LIMITS = (1.5, 2.0, 3.0, 4.0, 6.0)  # of trust

PAGE = """\
# Alternatives that were tried

Of {model}, behind the constructed projector.

In every row one thing differs from the rule as it is: t of the last token at block {block}, a
read-out of shrinkage {shrinkage} that neutral text and pictures move little, re-centred, and for
each modality the threshold that at most {text:.0%} of neutral text and {image:.0%} of neutral
pictures exceed, with 95 % confidence ({certified} certify it). Cells are percent of requests,
harmful / harmless / borderline: of harmful ones those for which the gate opens or that the model
refuses by itself, of others those for which it opens though the model answers. AUROC is that of t,
harmful against harmless, the mean over the forms. There are at most {limit} requests of each form
and kind: one is {step:.1f} points.

**All these topics and forms were looked at while the rules were chosen.** The table says what the
alternatives trade, not how well the rules do. As it is, pictures get the largest share that the
converter gives them; it gives less where that is enough.

{rows}

- No re-centering: the shift of a medium moves all t of a modality alike, and with them its
  threshold. So it cancels in the gate, and acts on the strength alone. With one threshold for all
  modalities, the largest, it does not.
- Less t without the picture, or with a blank one: each input is read twice, neutral ones too, and
  what the wording alone gives is taken off.
- Means of blocks are means of t, which is 0 and 1 at the centroids of every block.

## With the answers known

Percent of harmful requests that the gate would open for or that the model refuses by itself, with
thresholds that are chosen with the answers known: of each form the lowest above which no more
than {allowed:.0%} of its harmless requests lie that the model answers, which no calibration can
know. And with a read-out that is trained on the harmful and harmless pictures themselves, those
about a {folds}th of the topics left out in turn.

Of the topics and forms above:

{looked_at}

Of those that the report of the evaluation shows (`lab.reader.report`), the first {limit} of each
form and kind, by which nothing was chosen:

{held_out}

## How far to push

Text that the model answers, with the gate held open: percent refused, by trust limit.

{steered}
"""


def by_rule(every: Iterable[Rule], seen: Seen) -> str:
    """Writes what the model refuses by itself, and what each rule makes of it, by form."""
    forms = list(dict.fromkeys(form for form, _ in seen.requests))

    def cells(shares: Mapping[Name, float]) -> list[str]:
        by_form = [[100 * shares[form, kind] for kind in suite.KINDS] for form in forms]
        pictures = [row for form, row in zip(forms, by_form, strict=True) if form != "text"]
        by_form.append(np.mean(pictures, axis=0).tolist())
        return [" / ".join(f"{share:.0f}" for share in row) for row in by_form]

    rows = [["refused by the model itself", *cells(refused(seen)), ""]]
    for rule in every:
        shares, area = judged(rule, seen)
        rows.append([rule.name, *cells(shares), f"{area:.3f}"])
    return "\n".join(table(["rule", *forms, "pictures, mean", "AUROC"], rows))


def highest(rule: Rule, seen: Seen) -> str:
    """Writes the `ceilings`, by form."""
    forms = list(dict.fromkeys(form for form, _ in seen.requests))
    rows = []
    for name, shares in ceilings(rule, seen):
        cells = [f"{100 * shares[form]:.0f}" if form in shares else "" for form in forms]
        shown = [f for f in shares if seen.requests[f, "harmful"].prompts[0].images]
        rows.append([name, *cells, f"{100 * np.mean([shares[f] for f in shown]):.0f}"])
    return "\n".join(table(["chosen with the answers known", *forms, "pictures, mean"], rows))


def steered(extractor: TailExtractor, seen: Seen, blocks: Sequence[int], advance: Advance) -> str:
    """Writes how much text that the model answers is refused with the gate held open, at each of
    ``blocks`` and LIMITS."""
    base = centroids(seen.fit["harmless"][:, :, LAST], seen.fit["harmful"][:, :, LAST])
    places = [(block, limit) for block in blocks for limit in LIMITS]
    rows = []
    for kind in ("harmful", "harmless"):
        asked = seen.requests["text", kind]
        answered = asked.where(~seen.refusals.among(asked.replies))
        if not answered.prompts:
            continue
        t = np.full((len(answered.prompts), extractor.n_layer), np.nan)
        for block in blocks:
            t[:, block] = coordinate(Rule("", (block,)), seen)(answered, "text")
        trial = Trial(answered.prompts, t).sample()
        forced = force(extractor, [trial], base, seen.refusals, places, advance)
        rates = {place: one.rate for place, one in zip(places, forced, strict=True)}
        for block in blocks:
            shares = [f"{100 * rates[block, limit]:.0f}" for limit in LIMITS]
            rows.append([f"block {block}", f"{kind}, {len(trial.prompts)} requests", *shares])
    return "\n".join(table(["steered at", "text", *(f"{limit:g}" for limit in LIMITS)], rows))


def requests(writer: Writer, limit: int) -> dict[Name, list[Prompt]]:
    """Chooses, by form and kind, at most ``limit`` requests, evenly spaced, of topics that rules
    were chosen by looking at."""
    found, every = {}, suite.forms()
    for form in FORMS:
        for kind in suite.KINDS:
            entries = [e for e in every[form] if e[0] == kind and int(e[1]) % 2 == 0]
            found[form, kind] = list(_prompts(writer, form, evenly(entries, limit)))
    return found


def plain_requests(writer: Writer, limit: int) -> dict[Name, list[Prompt]]:
    """Chooses, by form and kind, the report's first ``limit`` harmful and harmless requests."""
    found, every = {}, suite.forms()
    for form in report.FORMS:
        for kind in ("harmful", "harmless"):
            entries = [entry for entry in every[form] if entry[0] == kind]
            found[form, kind] = list(_prompts(writer, form, entries[:limit]))
    return found


def _prompts(
    writer: Writer, form: str, entries: Sequence[tuple[str, str, str, str]]
) -> Iterator[Prompt]:
    """Yields the prompts that have room; their kind is what they are about."""
    for _, topic, shown, asked in entries:
        with suppress(TooLong):
            yield Prompt(asked, (writer.picture(shown),) if shown else (), form, topic)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="lab.reader.tried", description=__doc__.split("\n\n")[0])
    p.add_argument("model")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    p.add_argument("--limit", type=int, default=20, help="requests of a form and kind")
    p.add_argument("--block", type=int, help="of all rows that name none (default: the last but 1)")
    args = p.parse_args(argv)
    require_gguf(str(args.model))
    parts = args.output / "parts"
    report.prepare(args.model, parts)
    extractor = TailExtractor(args.model, str(parts / "mmproj.gguf"))
    try:
        text = page(extractor, args, parts)
    finally:
        extractor.close()
    with atomic(args.output / "tried.md") as file:
        file.write_text(text, encoding="utf-8")
    print(text)


def page(extractor: TailExtractor, args: argparse.Namespace, parts: Path) -> str:
    """Measures and computes what the page says."""
    mmproj, n_layer = parts / "mmproj.gguf", extractor.n_layer
    sets = gather(Prompts(neutral_media=parts / "neutral", modalities=["image"]), 0, sees=True)
    splits = split_prompts(sets.contrast, sets.media, sets.contexts, 0)
    writer = Writer(extractor.llama, known_tokens(mmproj))
    asked, plain = requests(writer, args.limit), plain_requests(writer, args.limit)
    files = [(f.stat().st_size, f.stat().st_mtime_ns) for f in (Path(args.model), mmproj)]
    store = ResumeFile(parts / "tried.measured", f"{code_sha256()} {extractor.fingerprint} {files}")
    block = n_layer - 2 if args.block is None else args.block
    with tqdm(desc="measuring", unit="prompt") as bar:
        see = partial(observe, extractor, advance=bar.update, store=store)
        seen = measure(see, splits, asked)
        answers = {name: see(some, n_tokens=N_TOKENS) for name, some in plain.items()}
        forced = steered(extractor, seen, middle_blocks(block), bar.update)
    as_it_is = next(rules(n_layer, block))
    return PAGE.format(
        model=extractor.fingerprint.name,
        block=f"{block} of {n_layer}",
        shrinkage=SHRINKAGE,
        **BUDGETS,
        certified=" and ".join(f"{len(one.prompts)} of {m}" for m, one in seen.certify.items()),
        limit=args.limit,
        step=100 / args.limit,
        rows=by_rule(rules(n_layer, block), seen),
        allowed=ALLOWED,
        folds=FOLDS,
        looked_at=highest(as_it_is, seen),
        held_out=highest(as_it_is, replace(seen, requests=answers)),
        steered=forced,
    )


if __name__ == "__main__":
    with command():
        main()
