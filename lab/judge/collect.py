"""``python -m lab.judge.collect NAME MODEL.gguf -o FILE`` collects the replies of a model, greedy,
as far as they are read, to label and then to cut (`lab.judge.cut`).

What a steered ask needs is ``--vector``; without one, only the unsteered are asked. Pictures need
``--mmproj``. Asks that FILE holds already are not asked again.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab.judge.asks import UNSTEERED, Ask, asks, messages
from mars_gguf.evaluate.arms import MARS, Arm, first_token, steered_by, stock
from mars_gguf.evaluate.arms import UNSTEERED as UNSTEERED_ARM
from mars_gguf.runtime.llama import SteeredLlama

NAMES = {
    "qwen": "Qwen2.5-Coder-0.5B-Instruct Q4_K_M",
    "smollm2": "SmolLM2-135M-Instruct Q4_1",
    "demo": "mars-demo Q4_K_M",
}
MAX_TOKENS = 96


def arm(name: str) -> Arm:
    """Finds the arm of a name such as "mars" or "stock 1.5"."""
    if name in (UNSTEERED, "mars"):
        return UNSTEERED_ARM if name == UNSTEERED else MARS
    sort, strength = name.split()
    return {"stock": stock, "first-token": first_token}[sort](float(strength))


def reply(llama: SteeredLlama, ask: Ask) -> str:
    steered = steered_by(llama, arm(ask.arm)) if isinstance(llama, SteeredLlama) else nullcontext()
    with steered:
        found: Any = llama.create_chat_completion(
            messages(ask),  # type: ignore[arg-type]
            temperature=0.0,
            repeat_penalty=1.0,
            max_tokens=MAX_TOKENS,
        )
    return str(found["choices"][0]["message"]["content"] or "")


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="lab.judge.collect", description=__doc__)
    p.add_argument("name", choices=NAMES)
    p.add_argument("model")
    p.add_argument("--mmproj")
    p.add_argument("--vector")
    p.add_argument("-t", "--threads", type=int)
    p.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    args = p.parse_args(argv)
    options: dict[str, Any] = {
        "n_ctx": 1024, "n_threads": args.threads, "n_threads_batch": args.threads, "verbose": False
    }  # fmt: skip
    llama = (
        SteeredLlama(args.model, vector=args.vector, mmproj=args.mmproj, **options)
        if args.vector
        else SteeredLlama(args.model, mmproj=args.mmproj, **options)
    )
    done = args.output.read_text(encoding="utf-8").splitlines() if args.output.exists() else []
    ids = {json.loads(line)["id"] for line in done}
    with args.output.open("a", encoding="utf-8") as file:
        for number, ask in enumerate(asks(args.name)):
            name = f"{args.name}-{number:03}"
            if name in ids or (ask.arm != UNSTEERED and not args.vector):
                continue
            line = {
                "id": name,
                "model": NAMES[args.name],
                **asdict(ask),
                "reply": reply(llama, ask),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    llama.close()


if __name__ == "__main__":
    main()
