"""``python -m lab.reader.report MODEL.gguf -o DIR`` converts a text model behind the constructed
projector, and evaluates the vector on forms and requests that nothing was chosen by looking at.

In one run beside MARS: no steering, a safety prompt and a random direction. Then the same requests
in conversations, without steering and with MARS, into DIR/conversations. All further options are
`mars_gguf.evaluate`'s (-t, ...). DIR gets its reports and the vector's card; pictures, suites and
vectors stay in DIR/parts, and what is there is not made again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from llama_cpp import Llama

from lab.reader import build, neutral, suite
from lab.reader.grid import Writer
from lab.reader.projector import known_tokens
from mars_gguf.console import command
from mars_gguf.convert import Prompts
from mars_gguf.convert import convert as measured
from mars_gguf.evaluate.builtin import CONTEXTS
from mars_gguf.loading import say
from mars_gguf.modalities import IMAGE
from mars_gguf.runtime.weights import require_gguf

FORMS = (
    "plain", "plain-instruction-1", "plain-instruction-2", "plain-instruction-3",
    "plain-subject-1", "plain-subject-2",
)  # fmt: skip
ARMS = ("safety-prompt", "random-1", "mars")
IN_CONVERSATIONS = ("mars",)


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


def convert(model: str, parts: Path, folder: Path) -> None:
    """Makes the vector, its card and plot."""
    prompts = Prompts(neutral_media=parts / "neutral", modalities=(IMAGE.name,))
    conversion = measured(
        model,
        parts / "mmproj.gguf",
        prompts=prompts,
        output=parts / "mars.gguf",
        progress=True,
        say=say,
    )
    _, *beside = conversion.write()
    for path in beside:
        shutil.copy(path, folder / path.name)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="lab.reader.report", description=__doc__.split("\n\n")[0])
    p.add_argument("model")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    p.add_argument("--limit", type=int, default=20, help="requests of a form, kind and medium")
    args, further = p.parse_known_args(argv)
    require_gguf(str(args.model))
    parts = args.output / "parts"
    prepare(args.model, parts)
    if not (parts / "mars.gguf").exists():
        convert(args.model, parts, args.output)
    suites = [str(parts / "suite" / f"{form}.jsonl") for form in FORMS]
    evaluate(args, args.output, suites, ARMS, args.limit, further)
    limit = args.limit * len(CONTEXTS) // 2
    suites = [str(parts / "suite" / "conversations.jsonl")]
    evaluate(args, args.output / "conversations", suites, IN_CONVERSATIONS, limit, further)


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
    options += ["--limit", str(limit), "-n", "16", "-o", str(output)]
    done = subprocess.run([sys.executable, "-m", "mars_gguf.evaluate", *options])
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    with command():
        main()
