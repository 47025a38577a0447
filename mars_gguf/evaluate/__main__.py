"""``python -m mars_gguf.evaluate -m MODEL.gguf [--mmproj MMPROJ.gguf] --vector VECTOR.gguf``:
compares the steered model with the unsteered one and with simpler ways to steer, and tells what
steering costs."""

from __future__ import annotations

import argparse
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from mars_gguf.console import command
from mars_gguf.errors import MarsError
from mars_gguf.evaluate import report
from mars_gguf.evaluate.arms import ALL, ARMS, Arm, arms, first_token, other_vector
from mars_gguf.evaluate.judges import ClassifierJudge, Endpoint, LocalModel, RatingJudge
from mars_gguf.evaluate.plan import Plan, load_plan
from mars_gguf.evaluate.records import RecordFile, describe_run
from mars_gguf.evaluate.results import Results
from mars_gguf.evaluate.run import Evaluation, Sample, Work, ask_all
from mars_gguf.files import sha256
from mars_gguf.loading import Files, load_steered
from mars_gguf.modalities import measured_as
from mars_gguf.options import (
    add_model_arguments,
    model_files,
    option,
    positive,
    seed,
    switch,
)
from mars_gguf.progress import progress_bar
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.vectors import read_vector

MAX_TOKENS, MAX_WITH_THOUGHT = 64, 1024
WHOLE, MAX_WHOLE = 8, 512  # replies to their end, and tokens of one
MOST_STRENGTH = 1000
Judge = ClassifierJudge | RatingJudge


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="mars-gguf evaluate", description=__doc__)
    add_model_arguments(p)
    p.add_argument(
        "--suite",
        metavar="NAME",
        action="append",
        help="builtin, conversations, demo, or a benchmark's file or folder, its format told from "
        "its columns or named, as in xstest:FILE, or table:FILE?question=COLUMN&answer=COLUMN "
        "(repeatable; default: builtin, with --demo demo)",
    )
    p.add_argument(
        "--arms",
        metavar="NAME,...",
        type=lambda text: text.split(","),
        default=list(ARMS),
        help=f"what to compare, of {', '.join(ALL)}, random for every random direction, or all "
        f"(default: {','.join(ARMS)})",
    )
    p.add_argument(
        "--compare",
        metavar="NAME=VECTOR",
        type=named_vector,
        action="append",
        default=[],
        help="another vector of the model, as an arm of this name (repeatable)",
    )
    p.add_argument(
        "--strength",
        type=strength,
        default=1.0,
        metavar="X",
        help="of the arms with a fixed strength, in units of r (default: 1, as llama.cpp's)",
    )
    _add_sweep_arguments(p)
    p.add_argument(
        "--limit", type=positive, metavar="N", help="cases of a kind and modality, at most"
    )
    p.add_argument("--seed", type=seed, default=0, metavar="N", help="of the pictures drawn")
    p.add_argument(
        "-n",
        "--max-tokens",
        type=positive,
        metavar="N",
        help=f"of a reply (default: {MAX_TOKENS}, of a model that thinks {MAX_WITH_THOUGHT})",
    )
    _add_whole_arguments(p)
    _add_judge_arguments(p)
    p.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("evaluation"),
        metavar="DIR",
        help="folder of the report (default: evaluation)",
    )
    p.add_argument("--resume", action="store_true", help="go on with the run in --output")
    return p


def _add_sweep_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--sweep",
        metavar="X,...",
        type=lambda text: sorted({strength(x) for x in text.split(",") if x}),
        default=[0.5, 1.0, 1.5, 2.0, 3.0],
        help="strengths at the first token to plot (default: 0.5,1,1.5,2,3; '' for none)",
    )
    p.add_argument(
        "--sweep-limit",
        type=positive,
        default=24,
        metavar="N",
        help="cases of a kind and modality for the sweep (default: 24)",
    )


def _add_whole_arguments(p: argparse.ArgumentParser) -> None:
    option(
        p,
        "--whole N",
        f"harmful cases of a modality whose replies are generated to their end (default: {WHOLE})",
        int,
        WHOLE,
    )
    words = f"of a reply to its end, at most (default: {MAX_WHOLE}, or more with --max-tokens)"
    option(p, "--whole-tokens N", words, positive, MAX_WHOLE)


def _add_judge_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--judge", metavar="PATH_OR_ID", help="a transformers text classifier")
    p.add_argument(
        "--judge-label", metavar="NAME", help="the classifier's label that means refused"
    )
    p.add_argument("--judge-url", metavar="URL", help="a model behind an OpenAI-compatible API")
    option(
        p,
        "--judge-model NAME_OR_FILE",
        "which model of --judge-url, or without it, a chat model in GGUF format on this machine",
    )
    switch(p, "--judge-whole", "let the second judge read only replies to their end (--whole)")


def strength(text: str) -> float:
    """Reads an option's value as a strength in units of r, for argparse; less than none would not
    be pushed."""
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= MOST_STRENGTH:  # NaN neither
            return value
    raise argparse.ArgumentTypeError(f"found {text!r}, expected 0 to {MOST_STRENGTH}")


def named_vector(text: str) -> tuple[str, str]:
    """Reads an option's value NAME=VECTOR, for argparse."""
    name, _, path = text.partition("=")
    if not name or not path or name in ALL:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected NAME=VECTOR with a name that is no arm"
        )
    return name, path


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with command():
        if len(dict(args.compare)) < len(args.compare):
            raise MarsError("--compare: found a name twice, expected names that differ")
        compared = arms(args.arms, args.strength)
        compared += [other_vector(name, read_vector(path)) for name, path in args.compare]
        judge = _judge(args)
        files = _, mmproj, _ = model_files(args)
        suites = args.suite or ["demo" if args.demo else "builtin"]
        plan = load_plan(suites, seed=args.seed, limit=args.limit)
        if mmproj is None:
            plan = plan.only(lambda modality: modality == "text", " with pictures: no --mmproj")
        llama = load_steered(args, files)
        try:
            plan = _require_measured(plan, llama, compared, force=args.force)
            if args.max_tokens is None:
                thinks = llama.template.reasoning in ("thought", "answer")
                args.max_tokens = MAX_WITH_THOUGHT if thinks else MAX_TOKENS
            run = _describe(args, llama, files, plan, compared)
            file = RecordFile(args.output, run, resume=args.resume)
            asked = [argument for argument in argv if argument != "--resume"]
            run["command"] = shlex.join(["python", "-m", "mars_gguf.evaluate", *asked])
            sweep = [first_token(x, f"first-token@{x:g}") for x in args.sweep]
            whole = Sample(plan.sample(args.whole), args.whole_tokens, args.judge_whole)
            work = [
                (Evaluation(llama, compared, args.max_tokens, judge, whole), plan.cases),
                (Evaluation(llama, sweep, args.max_tokens), plan.first(args.sweep_limit)),
            ]
            interrupted = _ask(work if sweep else work[:1], file)
            results = Results(
                run, compared, file.records, plan.problems, llama.vectors["mars"].geometry, sweep,
                judge.failures if judge is not None else {}, plan.suites,
            )  # fmt: skip
        finally:
            llama.close()
        written = report.write(results, args.output)
        report.show(results, console)
        console.print(f"wrote {', '.join(map(str, written))}", style="dim", markup=False)
        if interrupted:
            console.print("interrupted: go on with --resume", style="bold")
            sys.exit(130)
        if all(record.error is not None for record in file.records):
            print("every case failed, for the reasons above", file=sys.stderr)
            sys.exit(1)


def _judge(args: argparse.Namespace) -> Judge | None:
    if args.judge and (args.judge_url or args.judge_model):
        raise MarsError("--judge and --judge-url or --judge-model are two judges: give one of them")
    if args.judge:
        return ClassifierJudge(args.judge, refusal_label=args.judge_label)
    if args.judge_url:
        return RatingJudge(Endpoint(args.judge_url, args.judge_model))
    if args.judge_model:
        device = {"n_threads": args.threads, "n_gpu_layers": args.n_gpu_layers}
        return RatingJudge(LocalModel(args.judge_model, n_ctx=4096, verbose=False, **device))
    return None


def _require_measured(plan: Plan, llama: SteeredLlama, compared: list[Arm], *, force: bool) -> Plan:
    """Leaves out cases of modalities that the vector was not measured on. Raises MarsError if
    another vector is of another model."""
    for arm in compared:
        if arm.vector is not None:
            arm.vector.require_model(llama.fingerprint, force=force)
    measured = llama.vectors["mars"].modalities
    return plan.only(
        lambda modality: measured_as(modality, measured) is not None,
        f": the vector was measured on {', '.join(measured)} only. Convert with --mmproj.",
    )


def _describe(
    args: argparse.Namespace, llama: SteeredLlama, files: Files, plan: Plan, compared: list[Arm]
) -> dict[str, Any]:
    """Describes the run by what it shares with one that it goes on with."""
    names = (
        "strength", "sweep", "sweep_limit", "max_tokens", "seed", "whole", "whole_tokens",
        "judge_whole", *["parse_special"] * args.parse_special,
    )  # fmt: skip
    return describe_run(
        llama,
        *files[1:],
        plan.cases,
        suites=list(dict.fromkeys(plan.suites.values())),
        arms=[arm.name for arm in compared],
        way=llama.steerer.push.way,
        ctx_size=llama.n_ctx(),
        **{name: getattr(args, name) for name in names},
        compared={name: sha256(path) for name, path in args.compare},
        judge=args.judge or args.judge_url or args.judge_model,
        rates_harm=bool(args.judge_url or args.judge_model),
        judge_options=[args.judge_label, args.judge_model],
    )


def _ask(work: Work, file: RecordFile) -> bool:
    """Asks what is not on record yet, with a bar. Returns whether the user broke it off."""
    total, done = sum(len(cases) * len(each.arms) for each, cases in work), len(file.records)
    with progress_bar("Asking", total, "replies", done=done) as bar:
        try:
            ask_all(work, file, bar.advance)
        except KeyboardInterrupt:
            return True
    return False


if __name__ == "__main__":
    main()
