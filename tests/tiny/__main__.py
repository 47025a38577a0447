"""``python -m tests.tiny -o DIR``: write the tiny models, one folder each."""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf

from . import FAMILIES


def field(path: Path, name: str) -> str:
    return str(gguf.GGUFReader(path).fields[name].contents())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tiny", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("names", nargs="*", metavar="FAMILY", help="default: all")
    options = parser.parse_args()
    if unknown := set(options.names) - set(FAMILIES):
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    for name in options.names or FAMILIES:
        model, mmproj = FAMILIES[name].write(options.output / name)
        architecture = field(model, "general.architecture")
        projector = field(mmproj, "clip.projector_type")
        sizes = [f"{path.stat().st_size / 1e6:.2f} MB" for path in (model, mmproj)]
        print(f"{name:16} {architecture:10} {sizes[0]:>8}   {projector:16} {sizes[1]:>8}")


if __name__ == "__main__":
    main()
