"""What the model does unsteered: ``python -m mars_gguf.demo_model.training.evaluate_model``.

Runs every evaluation cell in llama.cpp through chat completions, on phrasings, fonts and
renderings that training never showed, and prints the table of MODEL_CARD.md.
"""

from __future__ import annotations

import argparse
import base64
import io
import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
from llama_cpp.llama_chat_format import MTMDChatHandler
from PIL import Image
from tqdm import tqdm

from mars_gguf.demo_model.training import world
from mars_gguf.demo_model.training.world import CELLS, Example


def data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def messages(prompt: str, pictures: Sequence[Image.Image] = ()) -> list[dict[str, object]]:
    """One user turn, its pictures first."""
    parts: list[dict[str, object]] = [
        {"type": "image_url", "image_url": {"url": data_uri(picture)}} for picture in pictures
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]


class Chat:
    """The model in llama.cpp, answering greedily."""

    def __init__(self, text: Path, mmproj: Path, threads: int | None = None) -> None:
        self.handler = MTMDChatHandler(str(mmproj), verbose=False, use_gpu=False)
        self.llama = llama_cpp.Llama(
            str(text),
            chat_handler=self.handler,
            n_ctx=512,
            n_gpu_layers=0,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def ask(self, prompt: str, pictures: Sequence[Image.Image] = (), tokens: int = 48) -> str:
        answer = self.llama.create_chat_completion(
            messages(prompt, pictures),  # type: ignore[arg-type]
            temperature=0.0,
            repeat_penalty=1.0,
            max_tokens=tokens,
        )
        assert isinstance(answer, dict)
        return answer["choices"][0]["message"]["content"] or ""


def score(chat: Chat, examples: Sequence[Example]) -> tuple[float, float, float, list[str]]:
    """Shares refused, naming the thing, and exact; and one line for each of a few wrong answers."""
    refused, named, exact = 0, 0, 0
    wrong: list[str] = []
    for e in examples:
        answer = chat.ask(e.prompt, e.pictures)
        refused += world.is_refusal(answer)
        named += e.thing is not None and e.thing.word in answer
        exact += answer == e.answer
        if answer != e.answer and len(wrong) < 3:
            wrong.append(f"{e.prompt!r}: {answer!r} instead of {e.answer!r}")
    n = len(examples)
    return refused / n, named / n, exact / n, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--mmproj", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200, help="prompts in each cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--wrong", action="store_true", help="show some wrong answers")
    args = parser.parse_args()
    chat = Chat(args.text, args.mmproj, args.threads)
    print(f"{args.text.name} + {args.mmproj.name}, {args.count} held-out prompts a cell\n")
    print("| cell | refused | names the thing | exact answer |")
    print("| --- | --- | --- | --- |")
    began = time.monotonic()
    for name in tqdm(CELLS, unit="cell", disable=None):
        examples = world.cell(name, args.count, args.seed)
        refused, named, exact, wrong = score(chat, examples)
        about = "" if examples[0].thing is None else f"{named:.1%}"
        print(f"| {name} | {refused:.1%} | {about} | {exact:.1%} |", flush=True)
        if args.wrong:
            print("".join(f"    {line}\n" for line in wrong), end="")
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
