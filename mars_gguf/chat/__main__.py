"""``python -m mars_gguf.chat -m MODEL.gguf [--mmproj MMPROJ.gguf] --vector VECTOR.gguf`` chats with
a steered model in the terminal, or asks it one thing with ``-p``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Generator
from contextlib import closing
from typing import Any

from PIL import Image
from rich.console import Console

from mars_gguf.chat.conversation import Conversation
from mars_gguf.chat.lines import line_editor, read_plainly
from mars_gguf.chat.live import stream
from mars_gguf.chat.terminal import COMMANDS, Terminal
from mars_gguf.console import command, printable, require_utf8
from mars_gguf.errors import MarsError
from mars_gguf.loading import load_steered
from mars_gguf.media.images import SHOWN_SIDE, load_image
from mars_gguf.media.video import Video, load_video
from mars_gguf.options import add_model_arguments, model_files, positive

TOP_K, TOP_P, MIN_P = 40, 0.95, 0.05  # what replies are drawn from, as llama.cpp does
DESCRIPTION = "Chat with a steered model in the terminal, or ask one thing with -p."


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="mars-gguf chat", description=DESCRIPTION)
    add_model_arguments(p)
    message, replies = p.add_argument_group("message"), p.add_argument_group("replies")
    for group, rows in (message, MESSAGE), (replies, REPLIES):
        for flags, kind, default, metavar, words in rows:
            how = {"action": "append"} if isinstance(default, list) else {"type": kind}
            group.add_argument(*flags.split(), default=default, metavar=metavar, help=words, **how)
    words = "print reply and steering as a JSON object"
    replies.add_argument("--json", action="store_true", help=words)
    return p


def _temperature(text: str) -> float:
    value = float(text)
    if not value >= 0:  # llama-cpp-python would draw from all tokens, whatever else was asked for
        raise argparse.ArgumentTypeError(f"found {text}, expected 0 or more")
    return value


def _tokens(text: str) -> int:
    return -1 if text == "-1" else positive(text)


MESSAGE: list[tuple[str, Any, Any, str, str]] = [  # flags, type, default, metavar, help
    ("-p --prompt", str, None, "TEXT",
     "one reply, then exit. What is piped in is appended ('-': that alone)"),
    ("--image", str, [], "FILE", "attach a picture to the first message (repeatable)"),
    ("--video", str, None, "FILE", "attach a video to the first message"),
    ("-sys --system-prompt", str, None, "TEXT",
     "what the model is told before everything else (default: nothing)"),
]  # fmt: skip
REPLIES: list[tuple[str, Any, Any, str, str]] = [
    ("-n --max-tokens", _tokens, 512, "N",
     "tokens of a reply, at most (default: 512; -1: until the context is full)"),
    ("--temp", _temperature, 0.8, "X",
     "temperature, 0 for the likeliest token each time (default: 0.8)"),
    ("--seed", int, None, "N",
     "what the drawing begins with (default, or below 0: something random)"),
]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with command():
        prompt = one_prompt(args.prompt, shows=bool(args.image or args.video), as_json=args.json)
        system = args.system_prompt and require_utf8(args.system_prompt, "--system-prompt")
        pictures, video = _attached(args)
        with closing(load_steered(args, model_files(args), keep_turns=True)) as llama:
            conversation = Conversation(llama, system=system, sampling=_sampling(args))
            if prompt is not None:
                pieces = conversation.reply(prompt, pictures, video)
                _answer_once(conversation, pieces, as_json=args.json)
                return
            read_line = line_editor(COMMANDS) if sys.stdout.isatty() else read_plainly
            console = Console(highlight=False)
            Terminal(conversation, console, read_line, load_video, pictures, video).run()


def one_prompt(given: str | None, *, shows: bool, as_json: bool) -> str | None:
    """Reads the one request of -p and of standard input; None if a person is there to chat.

    given: the text of -p; "-" is standard input alone. shows: whether the request shows something,
    so that it needs no words. as_json: whether the reply is to be JSON, which no chat is.
    """
    typed = sys.stdin is not None and sys.stdin.isatty()
    if given is None and typed:
        if as_json:
            raise MarsError("--json is for one reply: give --prompt, or a prompt on standard input")
        return None
    if given in (None, "-") and sys.stdin is None:
        raise MarsError("no standard input to read a prompt from. Give one with --prompt.")
    parts = [] if given is None or given == "-" else [require_utf8(given, "--prompt")]
    if given == "-" or (sys.stdin is not None and not typed):
        piped = sys.stdin.buffer.read().decode(errors="surrogateescape")
        parts.append(require_utf8(piped, "standard input").strip())
    prompt = "\n\n".join(part for part in parts if part)
    if not prompt and not shows:
        raise MarsError("the prompt is empty, expected some text")
    return prompt


def _attached(args: argparse.Namespace) -> tuple[list[Image.Image], Video | None]:
    """Reads the pictures and the video of the options, before the model is loaded."""
    pictures = [load_image(path, SHOWN_SIDE) for path in args.image]
    sees = args.mmproj or args.demo or args.hf_repo
    if not sees and (pictures or args.video):
        raise MarsError("--image and --video need --mmproj: without it the model sees nothing")
    if not args.video:
        return pictures, None
    with Console(stderr=True).status("reading the video"):
        return pictures, load_video(args.video)


def _answer_once(
    conversation: Conversation, pieces: Generator[str, None, None], *, as_json: bool
) -> None:
    """Prints the reply that comes in ``pieces``, then what had to be left out of its request."""
    with closing(pieces):
        if as_json:
            reply, mars = "".join(pieces), conversation.llama.last_steering
            print(json.dumps({"reply": reply, "mars": mars.report() if mars else None}))
        else:
            stream(Console(), pieces, conversation.split)
    for note in conversation.notes:
        print(printable(note), file=sys.stderr)


def _sampling(args: argparse.Namespace) -> dict[str, object]:
    return dict(
        max_tokens=args.max_tokens,
        temperature=args.temp,
        top_k=TOP_K,
        top_p=TOP_P,
        min_p=MIN_P,
        seed=None if args.seed is None or args.seed < 0 else args.seed,
        repeat_penalty=1.0,
    )


if __name__ == "__main__":
    main()
