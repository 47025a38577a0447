"""``python -m mars_gguf.evaluate.render -o DIR`` writes a suite's pictures and a ``suite.jsonl``
that ``load_suite("jsonl:DIR/suite.jsonl")`` reads, to look at or to use with other tools."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from mars_gguf.console import command
from mars_gguf.evaluate.suites import load_suite
from mars_gguf.files import atomic
from mars_gguf.options import seed


def write_suite(name_or_path: str, folder: Path, seed: int = 0) -> Path:
    """Writes the pictures of a suite as PNG files under ``folder``/media, one a frame, and its
    cases as ``folder``/suite.jsonl. Returns the path of that file."""
    suite = load_suite(name_or_path, seed=seed)
    (folder / "media").mkdir(parents=True, exist_ok=True)
    path = folder / "suite.jsonl"
    with atomic(path) as part, part.open("w", encoding="utf-8") as file:
        for number, case in enumerate(suite.cases):
            stem = f"{number:05}-{re.sub(r'[^A-Za-z0-9-]', '_', case.id)[:80]}"
            media = []
            for i, picture in enumerate(case.pictures()):
                media.append(f"media/{stem}-{i}.png")
                picture.save(folder / media[-1])
            print(json.dumps(case.as_json(media), ensure_ascii=False), file=file)
    return path


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        prog="mars_gguf.evaluate.render",
        description="Writes the pictures and videos of a suite, and a suite.jsonl that names them.",
    )
    p.add_argument("-o", "--out", metavar="DIR", type=Path, required=True, help="folder to write")
    p.add_argument("--suite", metavar="NAME_OR_PATH", default="builtin", help="(default: builtin)")
    p.add_argument("--seed", type=seed, default=0, metavar="N")
    args = p.parse_args(argv)
    with command():
        print(f"wrote {write_suite(args.suite, args.out, args.seed)}")


if __name__ == "__main__":
    main()
