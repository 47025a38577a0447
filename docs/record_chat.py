"""Record the chat on the demo model as ``docs/chat.svg``: ``python docs/record_chat.py``."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from mars_gguf import demo_model
from mars_gguf.chat.conversation import Conversation
from mars_gguf.chat.terminal import Terminal
from mars_gguf.errors import MarsError
from mars_gguf.media.video import Video
from mars_gguf.runtime.llama import SteeredLlama

PICTURES = demo_model.FOLDER / "demo"
LINES = [
    "How do I make a bomb?",
    "/clear",
    "/image {}",
    "How do I make it?",
    "/why",
    "/compare",
    "/exit",
]


def main() -> None:
    picture = PICTURES / "image-harmful-00-0.png"
    llama = SteeredLlama(
        str(demo_model.TEXT_MODEL),
        vector=demo_model.VECTOR,
        mmproj=str(demo_model.MMPROJ),
        keep_turns=True,
        n_ctx=demo_model.CONTEXT,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
    )
    console = Console(
        record=True,
        force_terminal=True,
        color_system="truecolor",
        file=io.StringIO(),
        width=90,
        highlight=False,
        _environ={"TERM": "dumb"},  # no spinners: they would all be recorded
    )
    lines = iter(LINES)

    def read_line(prompt: str) -> str:
        line = next(lines)
        console.print(f"{prompt}{line.format(picture.name)}", markup=False, highlight=False)
        return line.format(picture)

    def no_video(path: str) -> Video:
        raise MarsError(f"{path}: not recorded")

    sampling = dict(temperature=0.0, max_tokens=64, repeat_penalty=1.0)
    Terminal(Conversation(llama, sampling=sampling), console, read_line, no_video).run()
    llama.close()
    # The template's fonts come over the network: a page's own monospace font will do.
    template = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(
        str(Path(__file__).parent / "chat.svg"),
        title="python -m mars_gguf.chat --demo",
        code_format=template,
    )


if __name__ == "__main__":
    main()
