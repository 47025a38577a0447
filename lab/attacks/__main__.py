"""``python -m lab.attacks [MODEL.gguf --mmproj MMPROJ.gguf --vector VECTOR.gguf] -o FILE.md`` tells
what an attacker who controls the prompt alone can still gain from a steered model."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lab.attacks.attacks import Attack, attacks
from lab.attacks.table import table
from lab.attacks.targets import load_targets
from lab.attacks.trials import WHOLE_TOKENS, try_attacks
from mars_gguf import SteeredLlama, demo_model
from mars_gguf.console import command
from mars_gguf.errors import MarsError
from mars_gguf.files import atomic
from mars_gguf.modalities import MODALITIES
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
- goes on behind it: of some replies whose gate opened, generated to their end ({tokens} tokens at
  most), those in which what was asked for follows the refusal.
- grammar, logit bias, raw prompt: the client says how the reply begins, or how it goes on. A server
  with `--chat-only` lets none do so. `min_tokens` and a bias against the end are as the server
  takes them from a client: the one without effect on a steered reply, the other refused.

{table}{failures}"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="lab.attacks", description=__doc__)
    p.add_argument("model", nargs="?", help="default: the small model of the package")
    p.add_argument("--mmproj", metavar="FILE", help="default: text only")
    p.add_argument("--vector", metavar="FILE")
    p.add_argument("--name", help="of the model (default: as its file says)")
    suites = "as of mars_gguf.evaluate (repeatable; default: builtin, of the small model demo)"
    p.add_argument("--suite", metavar="NAME", action="append", help=suites)
    p.add_argument("--attack", metavar="NAME", action="append", help="only this one (repeatable)")
    limit = "requests of a suite, kind and modality (default: 40)"
    p.add_argument("--limit", type=positive, default=40, metavar="N", help=limit)
    whole = "replies of a row that are generated to their end, if their gate opened (default: 8)"
    p.add_argument("--whole", type=int, default=8, metavar="N", help=whole)
    p.add_argument("-n", "--max-tokens", type=positive, default=24, metavar="N")
    p.add_argument("-c", "--ctx-size", type=positive, default=1024, metavar="N")
    p.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the page here, too")
    add_threads_argument(p)
    return p


def load(args: argparse.Namespace) -> SteeredLlama:
    """Loads the model that the options name."""
    model, mmproj, vector = args.model, args.mmproj, args.vector
    if model is None:
        model, mmproj = demo_model.TEXT_MODEL, demo_model.MMPROJ
        vector = vector or demo_model.VECTOR
    if vector is None:
        raise MarsError("--vector: a model of your own needs one, as mars_gguf.convert writes it")
    options = {"n_ctx": args.ctx_size, "n_threads": args.threads, "n_threads_batch": args.threads}
    mmproj = None if mmproj is None else str(mmproj)
    return SteeredLlama(str(model), vector=vector, mmproj=mmproj, verbose=False, **options)


def chosen(names: Sequence[str] | None, *, demo: bool) -> list[Attack]:
    """Lists the attacks of these names; all, if there are none."""
    every = {attack.name: attack for attack in attacks(demo=demo)}
    unknown = [name for name in names or () if name not in every]
    if unknown:
        raise MarsError(f"no attack {', '.join(unknown)}, expected some of {', '.join(every)}")
    return [every[name] for name in names or every]


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
            targets = load_targets(suites, modalities, args.limit)
            trials, failures = try_attacks(llama, targets, ways, args.max_tokens, args.whole)
        finally:
            llama.close()
        page = PAGE.format(
            model=args.name or llama.fingerprint.name,
            command=shlex.join(["python", "-m", "lab.attacks", *argv]),
            table=table(trials),
            tokens=WHOLE_TOKENS,
            failures="".join(f"\n{n} x {what}\n" for what, n in failures.items()),
        )
        print(page)
        if args.output is not None:
            with atomic(args.output) as file:
                file.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
