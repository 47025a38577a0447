"""``python -m mars_gguf.chat -m MODEL.gguf [--mmproj MMPROJ.gguf] --vector VECTOR.gguf``: chat with
a steered model in the terminal, or ask one thing with ``-p``."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from functools import partial

from rich.console import Console

from mars_gguf.chat.conversation import Conversation
from mars_gguf.chat.replies import stream
from mars_gguf.chat.terminal import Terminal, read_plainly, read_with_prompt_toolkit
from mars_gguf.console import command, printable, require_utf8
from mars_gguf.errors import MarsError
from mars_gguf.loading import load_steered
from mars_gguf.media.images import SHOWN_SIDE, load_image
from mars_gguf.media.video import FPS, MAX_FRAMES, load_video
from mars_gguf.options import add_model_arguments, model_files, positive

DESCRIPTION = "Chat with a steered model in the terminal, or ask one thing with -p."


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="mars_gguf.chat", description=DESCRIPTION)
    add_model_arguments(p)
    _add_message_arguments(p)
    _add_sampling_arguments(p.add_argument_group("replies"))
    p.add_argument("--json", action="store_true", help="print reply and steering as a JSON object")
    return p


def _add_message_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "-p",
        "--prompt",
        metavar="TEXT",
        help="one reply, then exit. What is piped in is appended ('-': that alone)",
    )
    p.add_argument(
        "--image",
        metavar="FILE",
        action="append",
        default=[],
        help="attach a picture to the first message (repeatable)",
    )
    p.add_argument("--video", metavar="FILE", help="attach a video to the first message")
    p.add_argument(
        "--fps",
        type=_positive_number,
        default=FPS,
        metavar="X",
        help=f"frames of a video to look at, a second (default: {FPS:g})",
    )
    p.add_argument(
        "--max-frames",
        type=positive,
        default=MAX_FRAMES,
        metavar="N",
        help=f"frames of a video to look at, at most (default: {MAX_FRAMES})",
    )
    p.add_argument(
        "-sys",
        "--system-prompt",
        metavar="TEXT",
        help="what the model is told before everything else (default: nothing)",
    )


def _add_sampling_arguments(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "-n",
        "--max-tokens",
        type=lambda text: -1 if text == "-1" else positive(text),
        default=512,
        metavar="N",
        help="tokens of a reply, at most (default: 512; -1: until the context is full)",
    )
    p.add_argument(
        "--temp",
        type=float,
        default=0.8,
        metavar="X",
        help="temperature, 0 for the likeliest token each time (default: 0.8)",
    )
    p.add_argument(
        "--top-k",
        type=int,
        default=40,
        metavar="N",
        help="draw from the N likeliest tokens (default: 40; 0: from all)",
    )
    p.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        metavar="X",
        help="draw from the likeliest tokens that make up this share (default: 0.95; 1: from all)",
    )
    p.add_argument(
        "--min-p",
        type=float,
        default=0.05,
        metavar="X",
        help="draw from tokens this likely, next to the likeliest (default: 0.05; 0: from all)",
    )
    p.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="what the drawing begins with (default, or below 0: something random)",
    )


def _positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < 1000:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0")
    return value


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with command():
        prompt = _prompt(args)
        system = args.system_prompt and require_utf8(args.system_prompt, "--system-prompt")
        pictures = [load_image(path, SHOWN_SIDE) for path in args.image]
        sees = not args.no_mmproj and (args.mmproj or args.demo or args.hf_repo)
        if not sees and (pictures or args.video):
            raise MarsError("--image and --video need --mmproj: without it the model sees nothing")
        open_video = partial(load_video, fps=args.fps, max_frames=args.max_frames)
        video = None
        if args.video:
            with Console(stderr=True).status("reading the video"):
                video = open_video(args.video)
        llama = load_steered(args, model_files(args), keep_turns=True)
        try:
            conversation = Conversation(llama, system=system, sampling=_sampling(args))
            if prompt is None:
                read_line = read_with_prompt_toolkit() if sys.stdout.isatty() else read_plainly
                terminal = Terminal(conversation, Console(highlight=False), read_line, open_video)
                terminal.pictures, terminal.video = pictures, video
                terminal.run()
                return
            with closing(conversation.reply(prompt, pictures, video)) as pieces:
                if args.json:
                    reply, mars = "".join(pieces), llama.last_steering
                    print(json.dumps({"reply": reply, "mars": mars.report() if mars else None}))
                else:
                    stream(Console(), pieces, conversation.taken_apart)
            for note in conversation.notes:
                print(printable(note), file=sys.stderr)
        finally:
            llama.close()


def _prompt(args: argparse.Namespace) -> str | None:
    """The one request of -p and of standard input; None if a person is there to chat."""
    given, typed = args.prompt, sys.stdin is not None and sys.stdin.isatty()
    if given is None and typed:
        if args.json:
            raise MarsError("--json is for one reply: give --prompt, or a prompt on standard input")
        return None
    if given in (None, "-") and sys.stdin is None:
        raise MarsError("no standard input to read a prompt from. Give one with --prompt.")
    parts = [] if given in (None, "-") else [require_utf8(given, "--prompt")]
    if given == "-" or (sys.stdin is not None and not typed):
        piped = sys.stdin.buffer.read().decode(errors="surrogateescape")
        parts.append(require_utf8(piped, "standard input").strip())
    prompt = "\n\n".join(part for part in parts if part)
    if not prompt and not args.image and not args.video:
        raise MarsError("the prompt is empty, expected some text")
    return prompt


def _sampling(args: argparse.Namespace) -> dict[str, object]:
    return dict(
        max_tokens=args.max_tokens,
        temperature=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        seed=None if args.seed is None or args.seed < 0 else args.seed,
        repeat_penalty=1.0,
    )


if __name__ == "__main__":
    main()
