"""``python -m lab.demo_model.evaluate_model FOLDER`` prints the tables of the model's card.

It asks every evaluation cell of llama.cpp through chat completions, on how-to and caption
phrasings, references, fonts, renderings, system prompts and earlier turns that training never
showed: first unsteered, then steered by its vector (``--vector``), on those things that the vector
was not measured on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_chat_format import MTMDChatHandler
from rich.console import Console
from rich.progress import track

from lab.demo_model.cells import CELLS, IN_CONTEXT, Example, cell
from lab.demo_model.lessons import is_refusal
from mars_gguf import SteeredLlama, demo_model
from mars_gguf.demo_model import requests
from mars_gguf.media.images import message_of_parts, url_part, user_message
from mars_gguf.runtime.mtmd import silence_mtmd
from mars_gguf.statistics import auroc

SECOND = {*requests.HARMFUL_SECOND, *requests.HARMLESS_SECOND}
HARMFUL = ("picture, harmful how-to", "video, harmful how-to")


def _options(threads: int | None) -> dict[str, Any]:
    return {
        "n_ctx": demo_model.CONTEXT,
        "n_threads": threads,
        "n_threads_batch": threads,
        "verbose": False,
    }


def plain_llama(text: Path, mmproj: Path, threads: int | None = None) -> llama_cpp.Llama:
    """Loads the model in plain llama-cpp-python."""
    silence_mtmd()
    handler = MTMDChatHandler(str(mmproj), verbose=False)
    return llama_cpp.Llama(str(text), chat_handler=handler, **_options(threads))


def _message(e: Example, *, steered: bool) -> dict[str, Any]:
    """Asks of a film; plain llama-cpp-python knows pictures alone, by their URLs."""
    if steered:
        shown = {"video": e.pictures} if e.film else {"images": e.pictures}
        return user_message(e.prompt, **shown)
    return message_of_parts(e.prompt, [*map(url_part, e.pictures)])


def ask(llama: llama_cpp.Llama, e: Example, tokens: int = 48) -> Any:
    """Asks for a greedy chat completion."""
    return llama.create_chat_completion(
        [*e.before, _message(e, steered=isinstance(llama, SteeredLlama))],  # type: ignore[list-item]
        temperature=0.0,
        repeat_penalty=1.0,
        max_tokens=tokens,
    )


def _reply(completion: Any) -> str:
    return completion["choices"][0]["message"]["content"] or ""


def refused(replies: Sequence[str]) -> str:
    return f"{np.mean([is_refusal(reply) for reply in replies]):.1%}"


def cells() -> Iterable[str]:
    return track([*CELLS, *IN_CONTEXT], "cells", console=Console(stderr=True))


def unsteered_table(llama: llama_cpp.Llama, count: int, seed: int, show: int) -> None:
    """Prints shares of the replies to each cell. On topic: they name the thing, and do not refuse;
    ``show`` replies that are not the exact answer stand below a row."""
    print("| cell | refused | on topic | exact answer |")
    print("| --- | --- | --- | --- |")
    for name in cells():
        pairs = [(e, _reply(ask(llama, e))) for e in cell(name, count, seed)]
        about = [e.thing.word in r and not is_refusal(r) for e, r in pairs if e.thing is not None]
        on_topic = f"{np.mean(about):.1%}" if about else ""
        wrong = [f"    {e.prompt!r}: {r!r}, not {e.answer!r}" for e, r in pairs if r != e.answer]
        exact = 1 - len(wrong) / len(pairs)
        print(f"| {name} | {refused([r for _, r in pairs])} | {on_topic} | {exact:.1%} |")
        print("".join(f"{line}\n" for line in wrong[:show]), end="", flush=True)


def steered_table(plain: llama_cpp.Llama, steered: SteeredLlama, count: int, seed: int) -> None:
    """Prints what steering changes about the things that the vector was not measured on."""
    print("| cell | refused, unsteered | refused, steered | replies unchanged | mean t |")
    print("| --- | --- | --- | --- | --- |")
    t: dict[str, list[float]] = {}
    for name in cells():
        examples = cell(name, count, seed, keep=SECOND.__contains__)
        before = [_reply(ask(plain, e)) for e in examples]
        completions = [ask(steered, e) for e in examples]
        after = [_reply(c) for c in completions]
        t[name] = [c["mars"]["t"] for c in completions]
        same = np.mean([a == b for a, b in zip(before, after, strict=True)])
        columns = [name, refused(before), refused(after), f"{same:.1%}", f"{np.mean(t[name]):.2f}"]
        print(f"| {' | '.join(columns)} |", flush=True)
    print("\n| t of harmful how-to requests against | AUROC |\n| --- | --- |")
    for name in HARMFUL:
        medium = name.split(",")[0]
        everything = [n for n in CELLS if n.startswith(medium) and n != name]
        for title, others in (
            ("harmless how-to", [f"{medium}, harmless how-to"]),
            ("all harmless requests", everything),
        ):
            harmless = np.concatenate([t[n] for n in others])
            print(f"| {medium}, {title} | {auroc(np.asarray(t[name]), harmless):.3f} |")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the GGUF files")
    parser.add_argument("--vector", type=Path, help="steer with this file, too")
    parser.add_argument("--count", type=int, default=200, help="prompts in each cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--wrong", type=int, default=0, help="wrong answers to show of each cell")
    args = parser.parse_args(argv)
    text, mmproj = (args.folder / p.name for p in (demo_model.TEXT_MODEL, demo_model.MMPROJ))
    plain = plain_llama(text, mmproj, args.threads)
    began = time.monotonic()
    print(f"{text.name} + {mmproj.name}, {args.count} prompts a cell\n")
    unsteered_table(plain, args.count, args.seed, args.wrong)
    if args.vector:
        steered = SteeredLlama(
            str(text), vector=args.vector, mmproj=str(mmproj), **_options(args.threads)
        )
        print(f"\nSteered by {args.vector.name}, about the things it was not measured on:\n")
        steered_table(plain, steered, args.count, args.seed)
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
