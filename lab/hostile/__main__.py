"""``python -m lab.hostile [--requests 5000] [--seed 0]`` sends a real server of the small model
what a hostile client would.

Requests are drawn from the seed: of every two fields of every route one with both at an extreme or
beyond, about texts, pictures and films, with tools, grammars, streams and embeddings, some left
before their end; four are sent at a time. The server must never exit, answer 500, or send what is
no JSON or does not say that it was judged; a reply must not outlive its client by more than it was
at; memory must stay within bounds. Exits with 1 if one of it is not so, and prints the request that
did it;
``--only N`` sends that alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lab.hostile.drawing import Request, draw
from lab.hostile.serving import Served, served
from lab.hostile.trial import LEFT, OUTLIVES, Outcome, attempt
from mars_gguf.console import command
from mars_gguf.options import positive

AT_A_TIME = 4
WARM_UP = 0.2  # of the requests
# Mebibytes: at most at any time over an idle server, and from the warm-up to the end, between which
# what the requests of a moment hold differs by 130.
MOST_MEMORY, MOST_GROWTH = 1024, 256
SHOWN = 10  # problems


@dataclass
class Trial:
    """What came of all requests."""

    outcomes: list[Outcome] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # ids of requests, as the log says
    died_at: list[Request] = field(default_factory=list)
    idle: float = 0.0  # mebibytes, as the next three
    warm: float = 0.0
    end: float = 0.0
    peak: float = 0.0
    seconds: float = 0.0

    def problems(self) -> list[str]:
        found = [f"{p}\n  {o.request}" for o in self.outcomes for p in o.problems]
        found += [
            f"the log says 500\n  {o.request}" for o in self.outcomes if o.request.id in self.failed
        ]
        if self.died_at:
            shown = "\n  ".join(map(str, self.died_at))
            found.insert(0, f"the server ended. It was at, or had just been at:\n  {shown}")
        elif self.peak - self.idle > MOST_MEMORY or self.end - self.warm > MOST_GROWTH:
            found.append("memory is beyond its bounds")
        return found

    def __str__(self) -> str:
        manners = Counter(outcome.request.manner for outcome in self.outcomes)
        rows = Counter((o.request.path, str(o.status)) for o in self.outcomes)
        left = [o.outlived for o in self.outcomes if o.status == LEFT]
        lines = ["| route | ended with | requests |", "| --- | --- | --- |"]
        lines += [f"| {path} | {status} | {n} |" for (path, status), n in sorted(rows.items())]
        lines += [
            "",
            f"{len(self.outcomes)} requests ("
            + ", ".join(f"{n} {manner}" for manner, n in manners.most_common())
            + f") in {self.seconds:.0f} s; problems: {len(self.problems())}.",
            f"Of {len(left)} that were left, the longest went on for {max(left, default=0):.2f} s "
            f"(bound: {OUTLIVES:g}); the longest answer took "
            f"{max((o.seconds for o in self.outcomes), default=0):.1f} s.",
            f"Memory: {self.idle:.0f} MiB idle, {self.warm:.0f} after a fifth, {self.end:.0f} at "
            f"the end, {self.peak:.0f} at most (bounds: {MOST_MEMORY} over idle at most, "
            f"{MOST_GROWTH} from the fifth to the end).",
        ]
        return "\n".join(lines)


def run(server: Served, requests: list[Request]) -> Trial:
    """Sends ``requests``, and stops when the server has ended."""
    trial, began = Trial(idle=server.memory()), time.monotonic()
    warm_at = int(WARM_UP * len(requests))

    def send(request: Request) -> Outcome | None:
        return attempt(server, request) if server.lives else None

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for n, outcome in enumerate(pool.map(send, requests)):
            if outcome is None:
                break
            trial.outcomes.append(outcome)
            if n == warm_at:
                trial.warm = server.memory()
            if server.lives:
                trial.end, trial.peak = server.memory(), server.memory("VmHWM")
    last = [o.request for o in trial.outcomes if o.problems and o.status in ("none", LEFT)]
    if last and server.ends():
        trial.died_at = last[:AT_A_TIME]
    trial.failed = server.failures()
    trial.seconds = time.monotonic() - began
    return trial


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="lab.hostile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--requests", type=positive, default=5000, metavar="N")
    p.add_argument("--seed", type=int, default=0, metavar="N")
    p.add_argument("--only", type=int, metavar="N", help="send the request of that number alone")
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    numbers = range(args.requests) if args.only is None else [args.only]
    with command():
        with served("--embedding", "true") as server:
            trial = run(server, [draw(args.seed, number) for number in numbers])
            log = "" if server.lives else server.tail()
        print(trial)
        problems = trial.problems()
        for problem in problems[:SHOWN]:
            print(problem, file=sys.stderr)
        if problems:
            print(log, file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
