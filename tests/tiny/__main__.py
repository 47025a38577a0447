"""``python -m tests.tiny -o DIR``: write the tiny models, one folder each."""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf

from . import FAMILIES, UNSTEERABLE


def field(path: Path, name: str) -> str:
    return str(gguf.GGUFReader(path).fields[name].contents())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tiny", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("names", nargs="*", metavar="FAMILY", help="default: all")
    options = parser.parse_args()
    every = FAMILIES | UNSTEERABLE
    if unknown := set(options.names) - set(every):
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    for name in options.names or every:
        model, mmproj = every[name].write(options.output / name)
        size = model.stat().st_size
        line = f"{name:16} {field(model, 'general.architecture'):14} {size / 1e6:8.2f} MB"
        if mmproj is not None:
            projector, size = field(mmproj, "clip.projector_type"), mmproj.stat().st_size
            line += f"   {projector:16} {size / 1e6:8.2f} MB"
        print(line)


if __name__ == "__main__":
    main()
