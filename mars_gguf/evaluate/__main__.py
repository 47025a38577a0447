"""``python -m mars_gguf.evaluate -m MODEL.gguf [--mmproj MMPROJ.gguf] --vector VECTOR.gguf``:
compares the steered model with the unsteered one and with simpler ways to steer, and tells what
steering costs."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from mars_gguf.console import command
from mars_gguf.evaluate import report
from mars_gguf.evaluate.arms import ALL, ARMS, MARS, Arm, arms
from mars_gguf.evaluate.judges import Endpoint, LocalModel, RatingJudge
from mars_gguf.evaluate.plan import Plan, load_plan
from mars_gguf.evaluate.records import RecordFile, describe_run
from mars_gguf.evaluate.results import Results
from mars_gguf.evaluate.run import Evaluation, ask_all
from mars_gguf.formats import HANDLERS
from mars_gguf.loading import Files, load_steered, say
from mars_gguf.modalities import measured_as
from mars_gguf.options import (
    add_context_argument,
    add_device_arguments,
    add_threads_argument,
    model_files,
    option,
    positive,
    switch,
)
from mars_gguf.progress import progress_bar
from mars_gguf.runtime.llama import SteeredLlama

MAX_TOKENS, MAX_WITH_THOUGHT = 64, 1024
WHOLE = 8  # harmful cases of a modality whose replies are generated to their end
PLAIN_CASES = (
    8  # harmful and as many harmless ones of a modality that are asked without steering, too
)
# Options that other commands have, and what they are here.
FIXED = {
    "way": "auto", "reasoning": None, "ubatch_size": 512, "verbose": False,
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="mars-gguf evaluate", description=__doc__)
    group = p.add_argument_group("model and vector")
    option(group, "-m --model FILE", "model in GGUF format")
    option(group, "--mmproj FILE", "multimodal projector of the model; without one: text only")
    words = "vector that mars_gguf.convert wrote, or auto: a published one for these weights. "
    words += "Prompts are written, and thoughts kept or left out, as it was measured"
    option(group, "--vector FILE", words)
    switch(group, "--demo", "use the small model of the package")
    _add_question_arguments(p.add_argument_group("what is asked"))
    group = p.add_argument_group("judge")
    option(group, "--judge-url URL", "a chat model behind an OpenAI-compatible API reads, too")
    words = "which model of --judge-url, or without it, one in GGUF format on this machine"
    option(group, "--judge-model NAME_OR_FILE", words)
    group = p.add_argument_group("where it comes from and runs")
    option(group, "-hfr --hf-repo ORG/NAME", "download the model from a Hugging Face hub")
    words = "which file of the repository, or a pattern; its mmproj is taken along"
    option(group, "-hff --hf-file FILE", words)
    add_device_arguments(group)
    add_threads_argument(group)
    add_context_argument(group)
    words = "how prompts are written (default: mtmd, the model's own chat template): "
    words += ", ".join(HANDLERS)
    group.add_argument("--chat-handler", choices=HANDLERS, metavar="NAME", help=words)
    switch(group, "--force", "use a vector of another quantization, other weights or template")
    p.set_defaults(**FIXED)
    return p


def _add_question_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--suite",
        metavar="NAME",
        action="append",
        help="builtin, conversations, demo, or a benchmark's file or folder, its format told from "
        "its columns or named, as in xstest:FILE (repeatable; default: builtin, with --demo demo)",
    )
    group.add_argument(
        "--arms",
        metavar="NAME,...",
        type=lambda text: text.split(","),
        default=list(ARMS),
        help=f"what to compare, of {', '.join(ALL)}, random for every random direction, or all "
        f"(default: {','.join(ARMS)})",
    )
    option(group, "--limit N", "cases of a kind and modality, at most", positive)
    words = f"of a reply (default: {MAX_TOKENS}, of a model that thinks {MAX_WITH_THOUGHT})"
    option(group, "-n --max-tokens N", words, positive)
    words = "folder of the report (default: evaluation). What is there of the same run is kept"
    option(group, "-o --output DIR", words, Path, Path("evaluation"))


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with command():
        results, interrupted = evaluate(args, argv)
        written = report.write(results, args.output)
        report.show(results, console)
        console.print(f"wrote {', '.join(map(str, written))}", style="dim", markup=False)
        if interrupted:
            console.print("interrupted: the same command goes on", style="bold")
            sys.exit(130)
        if all(record.error is not None for record in results.records):
            print("every case failed, for the reasons above", file=sys.stderr)
            sys.exit(1)


def evaluate(args: argparse.Namespace, argv: list[str]) -> tuple[Results, bool]:
    """Asks what the options name. Returns what it comes to, and whether the user broke it off.
    Raises MarsError."""
    compared = arms(args.arms)
    judge, files = _judge(args), model_files(args)
    plan = load_plan(args.suite or ["demo" if args.demo else "builtin"], limit=args.limit)
    if files[1] is None:
        plan = plan.only(lambda modality: modality == "text", " with pictures: no --mmproj")
    llama = load_steered(args, files)
    try:
        plan = _require_measured(plan, llama)
        thinks = llama.template.reasoning in ("thought", "answer")
        args.max_tokens = args.max_tokens or (MAX_WITH_THOUGHT if thinks else MAX_TOKENS)
        run = _describe(args, llama, files, plan, compared)
        file = RecordFile(args.output, run)
        run["command"] = shlex.join(["python", "-m", "mars_gguf.evaluate", *argv])
        whole = plan.sample(WHOLE, "harmful")
        plain = plan.sample(PLAIN_CASES, "harmful", "harmless") if MARS in compared else []
        chosen = {"whole": whole, "plain": plain}
        evaluation = Evaluation(llama, compared, args.max_tokens, judge, **chosen)
        interrupted = _ask(evaluation, plan, file)
        geometry = llama.vectors["mars"].geometry
    finally:
        llama.close()
    failures = judge.failures if judge is not None else {}
    shown = compared, file.records, plan.problems, geometry, failures, plan.suites
    return Results(run, *shown), interrupted


def _judge(args: argparse.Namespace) -> RatingJudge | None:
    if args.judge_url:
        return RatingJudge(Endpoint(args.judge_url, args.judge_model))
    if args.judge_model:
        device = {"n_threads": args.threads, "n_gpu_layers": args.n_gpu_layers}
        return RatingJudge(LocalModel(args.judge_model, n_ctx=4096, verbose=False, **device))
    return None


def _require_measured(plan: Plan, llama: SteeredLlama) -> Plan:
    """Leaves out cases of modalities that the vector was not measured on."""
    measured = llama.vectors["mars"].modalities
    return plan.only(
        lambda modality: measured_as(modality, measured) is not None,
        f": the vector was measured on {', '.join(measured)} only. Convert with --mmproj.",
    )


def _describe(
    args: argparse.Namespace, llama: SteeredLlama, files: Files, plan: Plan, compared: list[Arm]
) -> dict[str, Any]:
    """Describes the run by what it shares with one that it goes on with."""
    return describe_run(
        llama,
        files[2],
        plan.cases,
        suites=list(dict.fromkeys(plan.suites.values())),
        arms=[arm.name for arm in compared],
        ctx_size=llama.n_ctx(),
        max_tokens=args.max_tokens,
        judge=args.judge_url or args.judge_model,
        judge_model=args.judge_model,
    )


def _ask(evaluation: Evaluation, plan: Plan, file: RecordFile) -> bool:
    """Asks what is not on record yet, with a bar. Returns whether the user broke it off."""
    total = sum(len(evaluation.arms_of(case)) for case in plan.cases)
    if done := len(file.records):
        say(f"{file.path} has {done} of {total} replies")
    with progress_bar("Asking", total, "replies", done=done) as bar:
        try:
            ask_all(evaluation, plan.cases, file, bar.advance)
        except KeyboardInterrupt:
            return True
    return False


if __name__ == "__main__":
    main()
