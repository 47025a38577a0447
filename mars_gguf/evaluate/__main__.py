"""``python -m mars_gguf.evaluate -m MODEL.gguf [--mmproj MMPROJ.gguf] --vector VECTOR.gguf``: what
steering changes, and what it costs, against the unsteered model and simpler ways to steer."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mars_gguf.console import command, printable
from mars_gguf.errors import MarsError
from mars_gguf.evaluate import report
from mars_gguf.evaluate.arms import ALL, ARMS, Arm, arms, first_token, other_vector
from mars_gguf.evaluate.cases import Case
from mars_gguf.evaluate.judges import ClassifierJudge, EndpointJudge
from mars_gguf.evaluate.results import Results
from mars_gguf.evaluate.run import Evaluation, RecordFile, describe_run
from mars_gguf.evaluate.suites import load_suite
from mars_gguf.files import sha256
from mars_gguf.loading import load_steered
from mars_gguf.options import add_model_arguments, model_files, positive, seed
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.vectors import read_vector

MAX_TOKENS, MAX_WITH_THOUGHT = 64, 1024


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="mars_gguf.evaluate", description=__doc__)
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
        type=float,
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
        type=lambda text: sorted({float(x) for x in text.split(",") if x}),
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


def _add_judge_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--judge", metavar="PATH_OR_ID", help="a transformers text classifier")
    p.add_argument(
        "--judge-label", metavar="NAME", help="the classifier's label that means refused"
    )
    p.add_argument("--judge-url", metavar="URL", help="a model behind an OpenAI-compatible API")
    p.add_argument("--judge-model", metavar="NAME", help="which model of --judge-url")


def named_vector(text: str) -> tuple[str, str]:
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
        compared = arms(args.arms, args.strength)
        compared += [other_vector(name, read_vector(path)) for name, path in args.compare]
        judge = _judge(args)
        files = _, mmproj, vector = model_files(args)
        cases, suites, problems = _cases(args, mmproj)
        llama = load_steered(args, files)
        try:
            for arm in compared:
                if arm.vector is not None:
                    arm.vector.require_model(llama.fingerprint, force=args.force)
            cases = _measured(cases, llama, problems)
            if args.max_tokens is None:
                thinks = llama.template.reasoning in ("thought", "answer")
                args.max_tokens = MAX_WITH_THOUGHT if thinks else MAX_TOKENS
            options = _options(args, llama, compared, list(dict.fromkeys(suites.values())))
            run = describe_run(llama, mmproj, vector, cases, **options)
            file = RecordFile(args.output, run, resume=args.resume)
            asked = [argument for argument in argv if argument != "--resume"]
            run["command"] = shlex.join(["python", "-m", "mars_gguf.evaluate", *asked])
            sweep = [first_token(x, f"first-token@{x:g}") for x in args.sweep]
            swept = _spread(cases, args.sweep_limit) if sweep else []
            evaluation = Evaluation(llama, compared, max_tokens=args.max_tokens, second_judge=judge)
            sweeping = Evaluation(llama, sweep, max_tokens=args.max_tokens)
            failures = judge.failures if judge is not None else {}
            results = Results(
                run, compared, file.records, problems, llama.vector.geometry, sweep, failures,
                suites,
            )  # fmt: skip
            interrupted = _ask(file, [(evaluation, cases), (sweeping, swept)], console)
            _finish(results, args.output, console)
            if interrupted:
                console.print("interrupted: go on with --resume", style="bold")
                sys.exit(130)
            if all(record.error is not None for record in file.records):
                print("every case failed, for the reasons above", file=sys.stderr)
                sys.exit(1)
        finally:
            llama.close()


def _options(
    args: argparse.Namespace, llama: SteeredLlama, compared: list[Arm], suites: list[str]
) -> dict[str, Any]:
    """The options that a run shares with one that it goes on with."""
    names = ("strength", "sweep", "sweep_limit", "max_tokens", "seed")
    return {
        "suites": suites,
        "arms": [arm.name for arm in compared],
        "way": llama.way,
        "ctx_size": llama.n_ctx(),
        **{name: getattr(args, name) for name in names},
        "compared": {name: sha256(path) for name, path in args.compare},
        "judge": args.judge or args.judge_url,
        "judge_options": [args.judge_label, args.judge_model],
    }


def _judge(args: argparse.Namespace) -> ClassifierJudge | EndpointJudge | None:
    if args.judge and args.judge_url:
        raise MarsError("--judge and --judge-url are two judges: give one of them")
    if args.judge:
        return ClassifierJudge(args.judge, refusal_label=args.judge_label)
    return EndpointJudge(args.judge_url, args.judge_model) if args.judge_url else None


def _cases(
    args: argparse.Namespace, mmproj: str | None
) -> tuple[list[Case], dict[str, str], list[str]]:
    """The cases of all suites, by a case's id its suite's name, and what was left out."""
    cases: list[Case] = []
    suites: dict[str, str] = {}
    problems = []
    for name in args.suite or ["demo" if args.demo else "builtin"]:
        suite = load_suite(name, seed=args.seed, limit=args.limit)
        suites |= dict.fromkeys((case.id for case in suite.cases), suite.name)
        problems += [f"{suite.name}: {problem}" for problem in suite.problems]
        cases += suite.cases
    twice = len(cases) - len({case.id for case in cases})
    if twice:
        raise MarsError(f"{twice} cases have the id of another; evaluate such suites one by one")
    if mmproj is None:
        usable = [case for case in cases if case.modality == "text"]
        if len(usable) < len(cases):
            problems.append(f"{len(cases) - len(usable)} cases with pictures: no --mmproj")
        cases = usable
    if not cases:
        raise MarsError("no case is left; pictures and videos need --mmproj")
    return cases, suites, problems


def _measured(cases: list[Case], llama: SteeredLlama, problems: list[str]) -> list[Case]:
    """The cases of modalities that the vector was measured on."""
    known = set(llama.vector.modalities) | (
        {"video"} if "image" in llama.vector.modalities else set()
    )
    usable = [case for case in cases if case.modality in known]
    if len(usable) < len(cases):
        problems.append(
            f"{len(cases) - len(usable)} cases: the vector was measured on "
            f"{', '.join(llama.vector.modalities)} only"
        )
    if not usable:
        raise MarsError(f"no case is left: {problems[-1]}. Convert with --mmproj.")
    return usable


def _spread(cases: list[Case], limit: int) -> list[Case]:
    """The first harmful and harmless cases of each modality."""
    kept: list[Case] = []
    seen: dict[tuple[str, str], int] = {}
    for case in cases:
        key = case.kind, case.modality
        seen[key] = seen.get(key, 0) + 1
        if case.kind in ("harmful", "harmless") and seen[key] <= limit:
            kept.append(case)
    return kept


def _ask(file: RecordFile, work: list[tuple[Evaluation, list[Case]]], console: Console) -> bool:
    """Ask what is not on record yet, with a bar. Returns whether the user broke it off."""
    done: dict[str, set[str]] = {}
    for record in file.records:
        done.setdefault(record.case, set()).add(record.arm)
    total = sum(len(cases) * len(evaluation.arms) for evaluation, cases in work)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("replies", total=total, completed=len(file.records))
            for evaluation, cases in work:
                for turn, case in enumerate(cases):
                    skip = done.get(case.id, set())
                    if skip >= {arm.name for arm in evaluation.arms}:
                        continue
                    for record in evaluation.ask(case, turn, skip=skip):
                        file.add(record)
                        bar.advance(task)
    except KeyboardInterrupt:
        return True
    return False


def _finish(results: Results, folder: Path, console: Console) -> None:
    """Write the report, and show its table and what was left out."""
    written = report.write(results, folder)
    for table in report.tables(results):
        console.print(table)
    for problem in results.problems:
        console.print(printable(problem), style="dim", markup=False)
    for error, n in results.failures().items():
        console.print(f"{n} x {printable(error)}", style="dim", markup=False)
    for reason, n in results.judge_failures.items():
        console.print(f"the judge: {n} x {printable(reason)}", style="dim", markup=False)
    console.print(f"wrote {', '.join(str(path) for path in written)}", style="dim", markup=False)


if __name__ == "__main__":
    main()
