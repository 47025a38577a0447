"""``python -m lab.demo_model --out DIR`` makes the demo model from a seed.

It trains (DIR), writes the model for llama.cpp and transformers (DIR/export), checks that both are
the checkpoint, converts it (DIR/export/vector.gguf) and prints the tables of its card. A run that
was interrupted goes on with the same command.

On two CPU cores this takes about an hour; some stages can be run side by side first, see `train`.
Runs from the root of the repository. Needs the extras ``convert``, torch 2.9 or later, and a
llama.cpp that quantizes (llama-cpp-python does).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lab.demo_model import demo_data, evaluate_model, export, train, verify
from mars_gguf import demo
from mars_gguf.vectors import write_vector


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on every step count")
    parser.add_argument("--count", type=int, default=200, help="prompts in each evaluation cell")
    args = parser.parse_args(argv)
    out = args.out / "export"
    common = ["--out", str(args.out), "--seed", str(args.seed), "--scale", str(args.scale)]
    train.main([*common, "--resume"])
    export.main([str(args.out), str(out)])
    verify.main([str(out)])
    demo_data.write(out)
    vector = out / "vector.gguf"
    write_vector(demo.convert_demo_model(folder=out).vector, vector)
    evaluate_model.main([str(out), "--vector", str(vector), "--count", str(args.count)])


if __name__ == "__main__":
    main()
