"""``python -m mars_gguf.chat -m MODEL.gguf [--mmproj MMPROJ.gguf] --vector VECTOR.gguf``: chat with
a steered model in the terminal, or ask one thing with ``-p``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from PIL import Image

from mars_gguf.cli import add_model_arguments, command, load_steered, positive
from mars_gguf.errors import MarsError
from mars_gguf.llama import SteeredLlama, Steering
from mars_gguf.media import load_image, user_message

HELP = """\
/image PATH    attach a picture to the next message
/why           what steering measured at the last reply
/clear         forget the conversation
/help          this list
/exit          leave (or Ctrl-D); Ctrl-C stops a reply"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="mars_gguf.chat", description=__doc__)
    add_model_arguments(p)
    p.add_argument(
        "-p",
        "--prompt",
        metavar="TEXT",
        help="one reply, then exit; '-' reads it from standard input",
    )
    p.add_argument(
        "--image",
        metavar="FILE",
        action="append",
        default=[],
        help="attach a picture to the first message (repeatable)",
    )
    p.add_argument("-sys", "--system-prompt", metavar="TEXT")
    p.add_argument("-n", "--max-tokens", type=positive, default=512, metavar="N")
    p.add_argument("--temp", type=float, default=0.8, metavar="X")
    p.add_argument("--top-k", type=int, default=40, metavar="N")
    p.add_argument("--top-p", type=float, default=0.95, metavar="X")
    p.add_argument("--min-p", type=float, default=0.05, metavar="X")
    p.add_argument("--seed", type=int, metavar="N")
    p.add_argument(
        "--json", action="store_true", help="with -p: print reply and steering as one JSON object"
    )
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with command():
        images = [load_image(path) for path in args.image]
        prompt = args.prompt
        if sys.stdin is None and prompt in (None, "-"):
            raise MarsError("no standard input to read a prompt from. Give one with --prompt.")
        if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
            prompt = sys.stdin.read().strip()
        if prompt is not None and not prompt:
            raise MarsError("the prompt is empty, expected some text")
        if images and not (args.mmproj or args.demo):
            raise MarsError("--image needs --mmproj: without it the model sees no pictures")
        llama = load_steered(args)
        try:
            chat = Chat(llama, args)
            if prompt is None:
                loop(chat, images)
            elif args.json:
                reply = "".join(chat.reply(prompt, images))
                print(json.dumps({"reply": reply, "mars": asdict(chat.steering)}))
            else:
                show(chat.reply(prompt, images))
        finally:
            llama.close()


class Chat:
    """A conversation: its messages, and what steering did last."""

    def __init__(self, llama: SteeredLlama, args: argparse.Namespace) -> None:
        self.llama = llama
        self.system = (
            [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
        )
        self.messages: list[dict[str, Any]] = []
        self.sampling = dict(
            max_tokens=args.max_tokens,
            temperature=args.temp,
            top_k=args.top_k,
            top_p=args.top_p,
            min_p=args.min_p,
            seed=args.seed,
            repeat_penalty=1.0,
        )

    @property
    def steering(self) -> Steering:
        assert self.llama.last_steering is not None
        return self.llama.last_steering

    def reply(self, text: str, images: list[Image.Image]) -> Iterator[str]:
        """Yield the reply piece by piece; keep what was said, also if the caller stops early.
        A message that fails leaves the conversation as it was."""
        messages = [*self.messages, user_message(text, images)]
        pieces: list[str] = []
        try:
            chunks = self.llama.create_chat_completion(
                [*self.system, *messages], stream=True, **self.sampling
            )
            for chunk in chunks:
                piece = chunk["choices"][0]["delta"].get("content")
                if piece:
                    pieces.append(piece)
                    yield piece
        except ValueError as error:  # of llama-cpp-python: a context too small, say
            raise error if isinstance(error, MarsError) else MarsError(str(error)) from error
        finally:
            if pieces:
                answer = {"role": "assistant", "content": "".join(pieces)}
                self.messages = [*messages, answer]


def show(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def status(steering: Steering) -> str:
    """What steering did, in one line."""
    did = (
        f"steered by {steering.alpha:.3g} at block {steering.layer} ({steering.way})"
        if steering.alpha > 0
        else "not steered"
    )
    return (
        f"[{steering.modality}: t {steering.t:.2f}, z {steering.z:.1f}, gate {steering.gate:.2f}, "
        f"{did}, {steering.milliseconds:.0f} ms]"
    )


def loop(chat: Chat, images: list[Image.Image]) -> None:
    """Read messages and commands until the end of input."""
    print("/help lists the commands.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        name, _, argument = line.partition(" ")
        try:
            if name == "/exit":
                return
            if name == "/help":
                print(HELP)
            elif name == "/clear":
                chat.messages, images = [], []
            elif name == "/why":
                print(status(chat.steering) if chat.llama.last_steering else "nothing said yet")
            elif name == "/image":
                images.append(load_image(argument.strip()))
                print(f"{len(images)} attached to the next message")
            elif name.startswith("/"):
                print(f"no command {name}\n{HELP}")
            elif line:
                try:
                    show(chat.reply(line, images))
                    images = []
                except KeyboardInterrupt:
                    print(" [stopped]")
        except MarsError as error:
            print(f"error: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
