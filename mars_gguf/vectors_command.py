"""``mars-gguf vectors FILE`` checks a vector file and prints what it holds; with ``find`` it prints
where the vector of a model is, with ``publish`` it puts vectors where they are found."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mars_gguf.console import command, printable
from mars_gguf.files import sha256
from mars_gguf.options import add_vectors_from_argument
from mars_gguf.vectors import read_vector
from mars_gguf.vectors.describe import describe
from mars_gguf.vectors.shelf import publish

SHOW = "show"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="mars-gguf vectors",
        usage="%(prog)s [-h] FILE\n       %(prog)s find ...\n       %(prog)s publish ...",
        description=__doc__,
    )
    tasks = p.add_subparsers(dest="task", metavar="TASK", required=True, prog=p.prog)
    words = "check a vector file and print what it holds; the word may be left out"
    show = tasks.add_parser(SHOW, help=words, description=words)
    show.add_argument("file", metavar="FILE", help="a vector written by mars_gguf.convert")
    words = "print the path of the vector that belongs to a model, as --vector auto takes it"
    find = tasks.add_parser("find", help=words, description=words)
    find.add_argument("model", metavar="MODEL", help="model in GGUF format")
    find.add_argument("--mmproj", metavar="FILE", help="multimodal projector of the model")
    add_vectors_from_argument(find)
    words = "put vectors and their cards into a folder, where they are found by their weights"
    put = tasks.add_parser("publish", help=words, description=words)
    put.add_argument("folder", metavar="DIR", type=Path, help="that of $MARS_VECTORS, or to upload")
    put.add_argument("files", metavar="FILE", type=Path, nargs="+", help="vectors")
    return p


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] not in (SHOW, "find", "publish", "-h", "--help"):
        argv = [SHOW, *argv]
    args = parser().parse_args(argv)
    with command():
        if args.task == SHOW:
            print(describe(read_vector(args.file)))
            print(f"sha256      {sha256(args.file)}")
        elif args.task == "find":
            from mars_gguf.runtime.finding import find_vector

            print(printable(find_vector(args.model, args.mmproj, args.vectors_from)))
        else:
            for path in publish(args.folder, args.files):
                print(f"wrote {printable(str(path))}, {path.stem}.md")


if __name__ == "__main__":
    main()
