"""``python -m lab.reader.report MODEL.gguf -o DIR`` converts a text model behind the constructed
projector, and evaluates the vector on forms and requests that nothing was chosen by looking at.

In one run beside MARS: no steering, a random direction, and MARS without or
with other parts (``ARMS``), one of them one threshold for all modalities (the rule before version 3
of the vector file: what 1 % of the neutral inputs of the worst modality exceed, in spreads, text's
spread being the larger one of neutral and harmful prompts; what the model refuses by itself
counts). Then the same requests in conversations, into DIR/conversations. DIR gets
the reports of `mars_gguf.evaluate` and the vector's card; pictures, suites and vectors stay in
DIR/parts, and what is there is not made again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from llama_cpp import Llama

from lab.reader import build, neutral, suite
from lab.reader.grid import Writer
from lab.reader.projector import known_tokens
from mars_gguf.console import command
from mars_gguf.convert import Prompts
from mars_gguf.convert import convert as measured
from mars_gguf.convert.pipeline import Measurement
from mars_gguf.convert.vector_files import resume_path
from mars_gguf.evaluate.builtin import CONTEXTS
from mars_gguf.loading import say
from mars_gguf.runtime.weights import require_gguf
from mars_gguf.vectors import Vector, write_vector

FORMS = (
    "plain", "plain-instruction-1", "plain-instruction-2", "plain-instruction-3",
    "plain-subject-1", "plain-subject-2",
)  # fmt: skip
ARMS = ("random-1", "projection", "no-recentering", "mars")
IN_CONVERSATIONS = ("mars",)


def one_threshold(measurement: Measurement) -> Vector:
    """Makes the vector with the gate of before: thresholds z_0 sigma_m with one z_0."""
    vector = measurement.vector
    g, layer = vector.geometry, vector.layer
    harmful = measurement.coordinates["harmful text"][:, layer]
    spreads, worst = {}, 0.0
    for m in vector.modalities:
        t = measurement.coordinates[f"neutral {m}"][:, layer] - float(g.shifts[m] @ g.readout)
        spreads[m] = float(max(t.std(), harmful.std()) if m == "text" else t.std())
        worst = max(worst, float(np.quantile(t, 0.99)) / spreads[m])
    thresholds = {m: worst * spread for m, spread in spreads.items()}
    return replace(vector, geometry=replace(g, spreads=spreads, thresholds=thresholds))


def prepare(model: str, parts: Path) -> None:
    """Makes the projector, the neutral pictures and the suites."""
    with seeing(model, parts) as writer:
        suite.write_suite(writer, parts / "suite", suite.held_out)
    suite.write_conversations(parts / "suite" / "conversations.jsonl")


@contextmanager
def seeing(model: str, parts: Path) -> Iterator[Writer]:
    """Makes the projector and the neutral pictures. Yields what writes pictures for it."""
    parts.mkdir(parents=True, exist_ok=True)
    mmproj = parts / "mmproj.gguf"
    if not mmproj.exists():
        build.main([model, "-o", str(mmproj)])
    with closing(Llama(model, vocab_only=True, verbose=False)) as llama:
        writer = Writer(llama, known_tokens(mmproj))
        if not (parts / "neutral").exists():
            neutral.write_neutral(writer, parts / "neutral")
        yield writer


def convert(model: str, parts: Path, output: Path) -> None:
    """Makes the vector, its card and plot, and the one that it is compared with."""
    prompts = Prompts(neutral_media=parts / "neutral")
    resume = resume_path(parts / "mars.gguf")
    conversion = measured(
        model, parts / "mmproj.gguf", prompts=prompts, resume=resume, progress=True, say=say
    )
    _, *beside = conversion.write(parts / "mars.gguf")
    write_vector(one_threshold(conversion.measurement), parts / "one-threshold.gguf")
    for path in beside:
        shutil.copy(path, output / path.name)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="lab.reader.report", description=__doc__.split("\n\n")[0])
    p.add_argument("model")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    p.add_argument("--limit", type=int, default=20, help="requests of a form, kind and medium")
    args = p.parse_args(argv)
    require_gguf(str(args.model))
    parts = args.output / "parts"
    prepare(args.model, parts)
    if not (parts / "one-threshold.gguf").exists():
        convert(args.model, parts, args.output)
    compared = ["--compare", f"one-threshold={parts / 'one-threshold.gguf'}"]
    suites = [str(parts / "suite" / f"{form}.jsonl") for form in FORMS]
    evaluate(args, args.output, suites, ARMS, args.limit, compared)
    limit = args.limit * len(CONTEXTS) // 2
    suites = [str(parts / "suite" / "conversations.jsonl")]
    evaluate(args, args.output / "conversations", suites, IN_CONVERSATIONS, limit, [])


def evaluate(
    args: argparse.Namespace,
    output: Path,
    suites: list[str],
    arms: Sequence[str],
    limit: int,
    further: list[str],
) -> None:
    """Asks the suites, or what is left of them; `mars_gguf.evaluate` writes the report."""
    parts = args.output / "parts"
    options = ["-m", args.model, "--mmproj", str(parts / "mmproj.gguf")]
    options += ["--vector", str(parts / "mars.gguf"), "--arms", ",".join(arms), *further]
    for suite_name in suites:
        options += ["--suite", suite_name]
    options += ["--limit", str(limit), "-n", "16", "--sweep", "", "-o", str(output)]
    options += ["--resume"] * (output / "records.jsonl").exists()
    done = subprocess.run([sys.executable, "-m", "mars_gguf.evaluate", *options])
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    with command():
        main()
