"""Says in words and figures what steering did to a turn."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mars_gguf.chat.conversation import Turn
from mars_gguf.chat.live import Split, shown
from mars_gguf.modalities import measured_as
from mars_gguf.steering import Geometry

MEDIA = {"text": "no picture", "image": "one or several pictures", "video": "a film"}
JUDGED = {
    "prompt": "the first token of the reply",
    "thought": "the first token of the thought",
    "answer": "the first token of the answer, after the thought",
}


def media_of(pictures: int, frames: int) -> str:
    """Counts what a message carries, in brackets."""
    names = [f"{pictures} picture{'s' * (pictures > 1)}"] if pictures else []
    names += [f"video of {frames} frame{'s' * (frames > 1)}"] if frames else []
    return f"[{', '.join(names)}] " if names else ""


def status(turn: Turn) -> str:
    """Sums up in one line what became of a turn."""
    s = turn.steering
    assert s is not None
    did = "steered" if turn.steered else "not steered"
    if s.position in ("thought", "answer"):
        did += f" at the {s.position}"
    rate = f", {turn.tokens_per_second:.1f}/s" if turn.tokens > 1 else ""
    speed = f"{turn.tokens} tokens{rate}, first after {turn.seconds_to_first:.2f} s"
    if s.t is None:
        judged = ["not judged: the thought did not end (-n allows more tokens)"]
    else:
        judged = [f"t {s.t:.2f}", f"gate {s.gate:.2f}", did]
    words = [s.modality, *judged, speed]
    if turn.full:
        words.append("the context is full")
    return " · ".join(words)


def why(turn: Turn, geometry: Geometry) -> RenderableType:
    """Shows what the runtime measured at the token that it judged, with t on a gauge."""
    assert turn.steering is not None
    s = turn.steering
    table = Table.grid(padding=(0, 2))
    table.add_row("modality", f"{s.modality}: {MEDIA[s.modality]} in the context")
    if s.t is None or s.z is None or s.position is None:
        table.add_row("judged", "nothing: the thought did not end. Allow more tokens with -n")
        return table
    which = "" if s.picture is None else f"; number {s.picture} of what was shown, alone"
    table.add_row("judged", JUDGED[s.position] + which)
    spread = geometry.spreads[measured_as(s.modality, geometry.spreads) or s.modality]
    opens = s.t - s.z * spread  # higher for one of several pictures
    table.add_row("t", gauge(s.t, opens))
    table.add_row("gate", f"{s.gate:.2f}: opens at t = {opens:.2f}; z = {s.z:.1f}")
    if turn.steered:
        limit = f"towards t = {geometry.trust_limit:.2f}"
        table.add_row("strength", f"alpha = {s.alpha:.4g}, {limit}, at block {s.layer} ({s.way})")
    else:
        table.add_row(
            "strength", f"0: the reply is what the model says by itself (block {s.layer})"
        )
    table.add_row("cost", f"{s.milliseconds:.1f} ms")
    return table


def gauge(t: float, opens: float, width: int = 41) -> Text:
    """Draws t between the safe centroid (0) and the unsafe one (1); the gate opens at the colon."""
    low, high = -0.5, 1.5

    def place(value: float) -> int:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(share * (width - 1))

    bar = ["─"] * width
    bar[place(0)], bar[place(1)], bar[place(opens)] = "├", "┤", ":"
    bar[place(t)] = "◂" if t < low else "▸" if t > high else "●"
    line = Text("safe ").append("".join(bar)).append(f" unsafe   {t:.2f}")
    line.stylize("red" if t >= opens else "green", 5 + place(t), 6 + place(t))
    return line


def side_by_side(unsteered: str, steered: str, split: Split) -> RenderableType:
    """Shows two replies to one request beside each other."""
    table = Table("without steering", "with steering", box=box.SIMPLE, expand=True)
    table.add_row(shown(unsteered, split), shown(steered, split))
    if unsteered == steered:
        return Group(table, Text("the same, word for word", style="dim"))
    return table
