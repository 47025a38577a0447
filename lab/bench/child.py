"""``python -m lab.bench.child JSON`` replies in a process of its own, and prints the time and the
memory it took. It imports the package only where it steers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

Seconds = tuple[float, float]  # to the first token, and for those after it


def peak_bytes() -> int | None:
    """The most memory that this process had in use, shared pages and those of mapped files
    included; None where the system does not tell."""
    try:
        # Not getrusage: on Linux it counts what the parent had in use when it started this process.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except FileNotFoundError:
        try:
            import resource
        except ImportError:
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def replies(
    model: str,
    tokens: list[int],
    options: dict[str, Any],
    n_reply: int,
    vector: str | None = None,
    gate: Any = "shut",
    guard: Sequence[int] = (),
    rpc_servers: str | None = None,
) -> dict[str, float]:
    """Loads the model, and with a ``vector`` steers, its gate "shut" or "open" whatever the prompt
    is. Returns the seconds to the first token of a reply to ``tokens``, which a second model with
    one token of an answer to ``guard`` lets pass, and those for ``n_reply`` tokens after it."""
    if rpc_servers:
        from mars_gguf.runtime.rpc import use_servers

        use_servers(rpc_servers)
    guarding = Llama(model, **options) if guard else None
    with ExitStack() as stack:
        if vector is None:
            llama = Llama(model, **options)
        else:
            from mars_gguf import SteeredLlama

            llama = SteeredLlama(model, vector=vector, **options)
            policy = llama.vectors["mars"].policy()
            stack.enter_context(llama.using(replace(policy, gate=gate, strength=1.0)))
        for n in (0, n_reply):  # warms up, then counts
            spent = reply(guarding, guard, 0)[0] if guarding is not None else 0.0
            first, rest = reply(llama, tokens, n)
    return {"first": spent + first, "reply": rest}


def reply(llama: Llama, tokens: Sequence[int], n_reply: int) -> Seconds:
    """Seconds from an empty context to the first token of a greedy reply, and for ``n_reply``
    tokens after it."""
    llama.reset()
    lib.llama_memory_clear(lib.llama_get_memory(llama.ctx), True)
    began = time.perf_counter()
    said = llama.generate(tokens, temp=0.0, repeat_penalty=1.0)
    next(said)
    first = time.perf_counter()
    for _ in range(n_reply):
        next(said)
    ended = time.perf_counter()
    said.close()
    return first - began, ended - first


def main() -> None:
    print(json.dumps(replies(**json.loads(sys.argv[1])) | {"peak": peak_bytes()}))


if __name__ == "__main__":
    main()
