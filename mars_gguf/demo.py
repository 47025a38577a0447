"""``python -m mars_gguf.demo`` converts the small model that the package ships, then shows what it
answers without steering and with it, on text, pictures and films."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from llama_cpp import Llama
from llama_cpp.llama_chat_format import MTMDChatHandler
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mars_gguf import demo_model
from mars_gguf.console import command
from mars_gguf.convert import Calibration, Conversion, GgufOptions, Prompts, convert
from mars_gguf.files import atomic, require_writable
from mars_gguf.media.images import load_image, message_of_parts, url_part, user_message
from mars_gguf.options import add_threads_argument
from mars_gguf.progress import progress_bar
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.vectors import write_vector

MAX_TOKENS = 48
GROUP = itemgetter("modality", "kind")  # by which the requests are in order
OVER_REFUSAL = 0.1  # of neutral inputs: its world holds nothing borderline


@dataclass(frozen=True)
class Request:
    """One line of demo.jsonl: a request of the demo model's world, with 0, 1 or more pictures."""

    modality: str
    kind: str
    prompt: str
    images: list[str]

    def messages(self, *, steered: bool = True) -> list[dict[str, Any]]:
        """Makes the chat messages that ask it.

        Plain llama-cpp-python knows pictures alone, by their URLs: a film's frames are pictures in
        a row for it. The tokens are the same.
        """
        folder = demo_model.FOLDER / "demo"
        pictures = [load_image(folder / name) for name in self.images]
        if not steered:
            return [message_of_parts(self.prompt, [*map(url_part, pictures)])]
        if self.modality == "video":
            return [user_message(self.prompt, video=pictures)]
        return [user_message(self.prompt, pictures)]


def requests() -> list[Request]:
    """Reads the held-out requests that the demo asks."""
    lines = (demo_model.FOLDER / "demo.jsonl").read_text(encoding="utf-8").splitlines()
    return [Request(**json.loads(line)) for line in lines]


def convert_demo_model(
    threads: int | None = None, *, folder: Path = demo_model.FOLDER, progress: bool = True
) -> Conversion:
    """Converts the model in ``folder`` with the prompts and pictures there, of its own world."""
    return convert(
        folder / demo_model.TEXT_MODEL.name,
        folder / demo_model.MMPROJ.name,
        prompts=Prompts(
            harmful=folder / "harmful.jsonl",
            harmless=folder / "harmless.jsonl",
            neutral_media=folder / "neutral.jsonl",
            own_wordings=True,  # others are not of its world
        ),
        calibration=Calibration(over_refusal=OVER_REFUSAL),
        options=GgufOptions(n_ctx=4096, n_threads=threads),
        progress=progress,
    )


def ask(llama: Llama, request: Request) -> dict[str, Any]:
    """Asks for a greedy reply: what it is, what steering did, and the milliseconds it took."""
    began = time.perf_counter()
    completion: Any = llama.create_chat_completion(
        request.messages(steered=isinstance(llama, SteeredLlama)),  # type: ignore[arg-type]
        temperature=0.0,
        max_tokens=MAX_TOKENS,
        repeat_penalty=1.0,
    )
    milliseconds = 1000 * (time.perf_counter() - began)
    reply = completion["choices"][0]["message"]["content"]
    steering = completion.get("mars", {})
    figures = {key: steering[key] for key in ("t", "gate", "alpha", "layer") if key in steering}
    refused = reply.startswith(demo_model.REFUSAL)  # as all its refusals do
    return {"reply": reply, "refused": refused, **figures, "milliseconds": milliseconds}


def run(threads: int | None, vector: Path, *, progress: bool = True) -> list[dict[str, Any]]:
    """Asks every request of the model in plain llama-cpp-python, and of the steered one."""
    files, mmproj = str(demo_model.TEXT_MODEL), str(demo_model.MMPROJ)
    options: dict[str, Any] = dict(
        n_ctx=demo_model.CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    with (  # the steered model first: it silences libmtmd for both
        closing(SteeredLlama(files, vector=vector, mmproj=mmproj, **options)) as steered,
        closing(
            Llama(files, chat_handler=MTMDChatHandler(mmproj, verbose=False), **options)
        ) as plain,
    ):
        asked, results = requests(), []
        with progress_bar("Asking", len(asked), "requests", shown=progress) as bar:
            for request in asked:
                both = {"unsteered": ask(plain, request), "steered": ask(steered, request)}
                shown = {"prompt": request.prompt, "image": request.images}
                group = {"modality": request.modality, "kind": request.kind}
                results.append(group | shown | both)
                bar.advance()
        return results


def show(results: list[dict[str, Any]], console: Console, *, every: bool) -> None:
    """Prints a sample of the replies (or every one), then the summary."""
    texts = "request", "without steering", "with steering"
    title = "All requests" if every else "A sample of the requests"
    table = _table(title, texts, ("t", "gate", "alpha", "ms"))
    for (modality, kind), rows in groupby(results, GROUP):
        group = list(rows)
        pictures = f" (+ {len(group[0]['image'])} pictures)" if modality == "video" else ""
        table.add_row(f"[bold]{modality}, {kind}[/]{pictures}")
        for row in group if every else group[:3]:
            before, after = row["unsteered"], row["steered"]
            same = before["reply"] == after["reply"]
            table.add_row(
                escape(row["prompt"]),
                _coloured(before, kind),
                "[dim]the same[/]" if same else _coloured(after, kind),
                f"{after['t']:.2f}",
                f"{after['gate']:.2f}",
                f"{after['alpha']:.0f}",
                f"{after['milliseconds']:.0f}",
            )
        table.add_section()
    console.print(table)
    console.print(summary(results))


def summary(results: list[dict[str, Any]]) -> Table:
    """Counts how many requests of each group were refused and how many replies stayed the same."""
    figures = "n", "without steering", "with steering", "unchanged", "time"
    table = _table("Refused, of all requests", [""], figures)
    for (modality, kind), rows in groupby(results, GROUP):
        group = list(rows)
        n = len(group)
        before, after = (sum(r[arm]["refused"] for r in group) for arm in ("unsteered", "steered"))
        same = sum(r["unsteered"]["reply"] == r["steered"]["reply"] for r in group)
        times = [sum(r[arm]["milliseconds"] for r in group) for arm in ("steered", "unsteered")]
        table.add_row(
            f"{modality}, {kind}",
            str(n),
            f"{before / n:.0%}",
            f"{after / n:.0%}",
            f"{same / n:.0%}",
            f"x {times[0] / times[1]:.2f}",
        )
    return table


def _table(title: str, texts: Sequence[str], figures: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in texts:
        table.add_column(name, ratio=1, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _coloured(arm: dict[str, Any], kind: str) -> str:
    good = arm["refused"] == (kind == "harmful")
    return f"[{'green' if good else 'red'}]{escape(arm['reply'])}[/]"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="mars-gguf demo", description=__doc__)
    p.add_argument("--json", metavar="FILE", type=Path, help="write every result as JSON")
    p.add_argument("--vector", metavar="FILE", type=Path, help="keep the vector here")
    p.add_argument("--all", action="store_true", help="show every request, not a sample")
    add_threads_argument(p)
    p.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with command(), tempfile.TemporaryDirectory() as folder:
        for path in filter(None, (args.json, args.vector)):
            require_writable(path)
        console = Console()
        began = time.perf_counter()
        conversion = convert_demo_model(args.threads, progress=not args.quiet)
        vector = args.vector or Path(folder) / "demo.gguf"
        write_vector(conversion.vector, vector)
        console.print(
            f"converted in {time.perf_counter() - began:.1f} s: block {conversion.vector.layer} "
            f"of {conversion.vector.model.n_layer}"
        )
        results = run(args.threads, vector, progress=not args.quiet)
        show(results, console, every=args.all)
        if args.json:
            with atomic(args.json) as file:
                file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            console.print(f"wrote {args.json}")


if __name__ == "__main__":
    main()
