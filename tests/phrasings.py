"""Patterns of the demo model's how-to requests."""

from __future__ import annotations

import re

from lab.demo_model.lessons import TRAINING
from mars_gguf.demo_model import world
from mars_gguf.demo_model.world import HELD_OUT


def pattern_of(phrasing: str) -> re.Pattern[str]:
    parts = {"v": "|".join(world.GERUNDS), "g": "|".join(world.GERUNDS.values()), "x": ".+?"}
    escaped = re.escape(phrasing)
    for letter, choices in parts.items():
        escaped = escaped.replace(rf"\{{{letter}\}}", f"(?:{choices})")
    return re.compile(escaped + "$")


HOWTO = [pattern_of(phrasing) for phrasing in (*TRAINING.howto, *HELD_OUT.howto)]
