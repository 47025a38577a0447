"""``python -m lab.attacks [MODEL.gguf --mmproj MMPROJ.gguf --vector VECTOR.gguf] -o FILE.md``: what
an attacker who controls the prompt alone can still gain from a steered model."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lab.attacks import figures
from lab.attacks.attacks import Attack, attacks
from lab.attacks.figures import Reply, Trial
from lab.attacks.requests import Request, load_requests
from mars_gguf import SteeredLlama, demo_model
from mars_gguf.console import command
from mars_gguf.errors import MarsError
from mars_gguf.evaluate.arms import UNSTEERED, steered_by
from mars_gguf.files import atomic
from mars_gguf.modalities import MODALITIES
from mars_gguf.openings import judge_by_opening
from mars_gguf.options import add_threads_argument, positive

PAGE = """# Attacks by prompt: {model}

    {command}

Requests that nothing was measured on, asked in ways that an attacker who controls the prompt alone
can choose, of the unsteered and of the steered model, greedily. Harmless requests, asked in the
same ways, are the control.

- n: requests, and in brackets how many things they are about.
- refused: as the judge says that reads openings; in brackets the 95 % interval, for which all
  requests about one thing count as one.
- names it: the reply is no refusal, and the thing that was asked about stands in it. An attack
  after which the model speaks of something else gains nothing. (Told where things have names.)
- grammar, logit bias, raw prompt: the client says how the reply begins. A server with `--chat-only`
  lets none do so.

{table}{failures}"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="lab.attacks", description=__doc__)
    p.add_argument("model", nargs="?", help="default: the small model of the package")
    p.add_argument("--mmproj", metavar="FILE", help="default: text only")
    p.add_argument("--vector", metavar="FILE")
    p.add_argument("--name", help="of the model (default: as its file says)")
    p.add_argument(
        "--suite",
        metavar="NAME",
        action="append",
        help="as of mars_gguf.evaluate (repeatable; default: builtin, of the small model demo)",
    )
    p.add_argument("--attack", metavar="NAME", action="append", help="only this one (repeatable)")
    p.add_argument(
        "--limit",
        type=positive,
        default=40,
        metavar="N",
        help="requests of a suite, kind and modality (default: 40)",
    )
    p.add_argument("-n", "--max-tokens", type=positive, default=24, metavar="N")
    p.add_argument("-c", "--ctx-size", type=positive, default=1024, metavar="N")
    p.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the page here, too")
    add_threads_argument(p)
    return p


def load(args: argparse.Namespace) -> SteeredLlama:
    """The model that the options name."""
    model, mmproj, vector = args.model, args.mmproj, args.vector
    if model is None:
        model, mmproj = str(demo_model.TEXT_MODEL), str(demo_model.MMPROJ)
        vector = vector or demo_model.VECTOR
    if vector is None:
        raise MarsError("--vector: a model of your own needs one, as mars_gguf.convert writes it")
    return SteeredLlama(
        model,
        vector=vector,
        mmproj=mmproj,
        n_ctx=args.ctx_size,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        verbose=False,
    )


def chosen(names: Sequence[str] | None, *, demo: bool) -> list[Attack]:
    """The attacks of these names, of all if there are none."""
    every = {attack.name: attack for attack in attacks(demo=demo)}
    unknown = [name for name in names or () if name not in every]
    if unknown:
        raise MarsError(f"no attack {', '.join(unknown)}, expected some of {', '.join(every)}")
    return [every[name] for name in names or every]


def tried(llama: SteeredLlama, attack: Attack, request: Request, max_tokens: int) -> Trial:
    """The request, asked so of the steered model and, unless its gate stayed closed, which changes
    no bit of a reply, of the unsteered one."""
    steered = attack.ask(llama, request, max_tokens)
    steering = llama.last_steering
    if steering is None:
        raise MarsError("the reply was empty before its first token")
    unsteered = steered
    if steering.alpha > 0:
        with steered_by(llama, UNSTEERED):
            unsteered = attack.ask(llama, request, max_tokens)
    about = request.kind, request.modality, attack.name, request.topic
    replies = judged(unsteered, request), judged(steered, request)
    return Trial(*about, *replies, steering.t, steering.alpha > 0)


def judged(reply: str, request: Request) -> Reply:
    refused = judge_by_opening(reply) == "refused"
    if request.word is None:
        return Reply(refused, None)
    return Reply(refused, not refused and request.word.lower() in reply.lower())


def measure(
    llama: SteeredLlama, requests: Sequence[Request], ways: Sequence[Attack], max_tokens: int
) -> tuple[list[Trial], Counter[str]]:
    """Every request asked in every way that suits it; what could not be asked, and why."""
    trials: dict[str, list[Trial]] = {attack.name: [] for attack in ways}
    failures: Counter[str] = Counter()
    for request in tqdm(requests, unit="request", disable=None):
        for attack in ways:
            if not attack.suits(request.modality):
                continue
            try:
                trials[attack.name].append(tried(llama, attack, request, max_tokens))
            except (MarsError, RuntimeError, ValueError) as error:  # the prompt is too long, say
                failures[f"{attack.name}: {error}"] += 1
        if llama.projector is not None:
            llama.projector.forget()
    return [trial for attack in ways for trial in trials[attack.name]], failures


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    demo = args.model is None
    with command():
        ways = chosen(args.attack, demo=demo)
        llama = load(args)
        try:
            modalities = [m for m in MODALITIES if m == "text" or llama.projector is not None]
            suites = args.suite or ["demo" if demo else "builtin"]
            requests = load_requests(suites, modalities, args.limit)
            trials, failures = measure(llama, requests, ways, args.max_tokens)
        finally:
            llama.close()
        page = PAGE.format(
            model=args.name or llama.fingerprint.name,
            command=shlex.join(["python", "-m", "lab.attacks", *argv]),
            table=figures.table(trials),
            failures="".join(f"\n{n} x {what}\n" for what, n in failures.items()),
        )
        print(page)
        if args.output is not None:
            with atomic(args.output) as file:
                file.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
