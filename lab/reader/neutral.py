"""``python -m lab.reader.neutral MODEL.gguf MMPROJ.gguf -o DIR`` draws harmless pictures that the
reader can read, to convert with: ``--neutral-media DIR``.

One folder a kind: "instruction" (a request in words) and "subject" (the name of a thing),
borderline ones among them. They are about other things than the suite's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llama_cpp import Llama

from lab.reader.grid import TooLong, Writer
from lab.reader.projector import known_tokens
from mars_gguf.console import command
from mars_gguf.runtime.weights import require_gguf


def write_neutral(writer: Writer, folder: Path) -> int:
    """Draws every text of ``neutral.jsonl`` that has room. Returns how many had."""
    text = Path(__file__).with_name("neutral.jsonl").read_text(encoding="utf-8")
    drawn = 0
    for number, line in enumerate(text.splitlines()):
        entry = json.loads(line)
        kind = folder / entry["kind"]
        kind.mkdir(parents=True, exist_ok=True)
        try:
            writer.picture(entry["text"]).save(kind / f"{number:03}.png")
        except TooLong:
            continue
        drawn += 1
    return drawn


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="lab.reader.neutral", description=__doc__)
    p.add_argument("model")
    p.add_argument("mmproj")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    args = p.parse_args(argv)
    require_gguf(str(args.model))
    require_gguf(args.mmproj)
    llama = Llama(args.model, vocab_only=True, verbose=False)
    drawn = write_neutral(Writer(llama, known_tokens(args.mmproj)), args.output)
    llama.close()
    print(f"wrote {drawn} pictures to {args.output}")


if __name__ == "__main__":
    with command():
        main()
