"""``python -m mars_gguf.vectors FILE`` checks a vector file and prints what it holds."""

from __future__ import annotations

import argparse

from mars_gguf.console import command
from mars_gguf.files import sha256
from mars_gguf.vectors import read_vector
from mars_gguf.vectors.describe import describe


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="mars-gguf vectors", description=__doc__)
    p.add_argument("file", metavar="FILE", help="a vector written by mars_gguf.convert")
    return p


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    args = parser().parse_args(argv)
    with command():
        vector = read_vector(args.file)
        print(describe(vector))
        print(f"sha256      {sha256(args.file)}")


if __name__ == "__main__":
    main()
