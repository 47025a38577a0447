"""``python -m tests.attacks NAME [-n N] [--seed N] [--only N] [-- FLAG ...]`` tries for longer what
the tests try: exits with 1 where something is wrong, and prints what. FLAGs are the server's.

    requests    a server, and all fields at their extremes in pairs (5000)
    calls       the library's arguments of sampling, likewise (2000)
    fairness    rounds of clients beside hostile ones (3)
    vectors     files that the reader of vectors is given, guided by its code (1000000)
    pictures    files that the decoders of pictures are given, likewise (1000000)
    kills       conversions that are killed, or ended by Ctrl-C, at any moment (50)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))  # what tests share

from attacks import calls, conversions, fairness, fuzzing, trial
from servers import ONE_THREAD, running

COUNTS = {
    "requests": 5000, "calls": 2000, "fairness": 3, "vectors": 10**6, "pictures": 10**6, "kills": 50
}  # fmt: skip
SHOWN = 10  # problems
SECONDS = 20.0  # of a round


def attack(name: str, count: int, seed: int, only: int | None, flags: list[str]) -> list[str]:
    """Runs an attack, and prints what came of it. Returns what is wrong."""
    numbers = range(count) if only is None else range(only, only + 1)
    with tempfile.TemporaryDirectory() as folder:
        demo = [Path(folder), "--demo", *ONE_THREAD]
        if name == "requests":
            with running(*demo, "--embedding", "true", *flags) as server:
                found = trial.send_all(server, [trial.draw(seed, n) for n in numbers])
            print(found)
            return found.problems()
        if name == "calls":
            ends, problems = calls.make_all(seed, numbers)
            print(", ".join(f"{n} {how}" for how, n in ends.most_common()))
            return problems
        if name == "fairness":
            waited: dict[bool, list[float]] = {False: [], True: []}
            with running(*demo, *flags) as server:
                for hostile in [False, True] * count:
                    waited[hostile] += fairness.a_round(server, hostile, SECONDS)
            print(fairness.row("beside honest ones", waited[False]))
            print(fairness.row("beside hostile ones", waited[True]))
            ratio = mean(waited[True]) / mean(waited[False])
            return [f"waited {ratio:.2f} times as long"] * (ratio > fairness.MOST)
        if name == "kills":
            tried = conversions.Conversions(Path(folder))
            for end in conversions.ends(count, seed, tried):
                print(f"{end}: {conversions.attack(tried, end)}", flush=True)
            return []
        code = fuzzing.fuzz(name, count, seed)
        return [f"ended with {code}: see crash-* here"] * (code != 0)


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m tests.attacks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("name", choices=COUNTS)
    p.add_argument("-n", type=int, help="how many (default: see above)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", type=int, help="the request or call of that number alone")
    p.add_argument("flags", nargs="*", help=argparse.SUPPRESS)
    args = p.parse_args()
    problems = attack(args.name, args.n or COUNTS[args.name], args.seed, args.only, args.flags)
    for problem in problems[:SHOWN]:
        print(problem, file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
