"""Runs each check in a process of its own.

So models of earlier ones leave nothing on the device, and one that dies is told from one that finds
a difference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import llama_cpp

from lab.devices.checks import Messages, Subject
from mars_gguf.runtime.mtmd import silence_mtmd
from mars_gguf.runtime.rpc import use_servers

Check = Callable[[Subject, Messages], Any]
_kept: list[Any] = []  # callbacks that llama.cpp holds


def alone(check: Check, subject: Subject, shown: str, servers: str | None) -> tuple[Any, str]:
    """Runs ``check`` on a prompt in a process of its own: what it finds, and how many layers are
    offloaded. A process that dies has found NaN."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            return process.submit(_checked, check, subject, shown, servers).result()
        except BrokenProcessPool:
            return math.nan, ""


def _checked(check: Check, subject: Subject, shown: str, servers: str | None) -> tuple[Any, str]:
    said: list[str] = []
    keep = llama_cpp.llama_log_callback(lambda _level, text, _data: said.append(text.decode()))
    if servers:
        use_servers(servers)
    silence_mtmd()
    llama_cpp.llama_log_set(keep, None)
    _kept.append(keep)
    found = check(subject, subject.prompts[shown])
    layers = re.findall(r"offloaded (\d+/\d+) layers to GPU", "".join(said))
    return found, layers[0] if layers else "none"
