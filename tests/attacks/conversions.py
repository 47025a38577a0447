"""Conversions that are killed, and what they leave.

A conversion writes a vector over an older one and is ended from outside, by SIGKILL or by Ctrl-C:
at any time, or (every other time) at one of its steps in the folder, most of which are those of
writing. Vector, card and plot must then be the older ones or whole new ones; a card that is not the
vector's must tell so; and the same command must go on to the same vector and tidy up.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mars_gguf.demo_model import __file__ as demo_model
from mars_gguf.files import sha256
from mars_gguf.vectors import read_vector

DEMO = Path(demo_model).parent
PROMPTS = 24
FILES = ["v.gguf", "v.md", "v.png"]
# What the folder may hold besides, until the next conversion has ended.
LEFT = r"v\.measured(-journal)?|" + (PARTIAL := r"v\.(gguf|md|png|measured)\.[a-z0-9_]{8}\.partial")

# Runs the converter; at the step with this number in this folder it gets this signal.
STEPPING = """
import os, runpy, sys
number, signal, folder = int(sys.argv[1]), int(sys.argv[2]), os.path.realpath(sys.argv[3])
step = 0

def look(event, arguments):
    global step
    if event in ("open", "os.rename", "os.remove", "os.chmod", "sqlite3.connect"):
        path = arguments[0]
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(folder):
            step += 1
            if step == number:
                os.kill(os.getpid(), signal)

sys.addaudithook(look)
sys.argv = ["convert", *sys.argv[4:]]
try:
    runpy.run_module("mars_gguf.convert", run_name="__main__", alter_sys=True)
finally:
    if number == 0:
        print(step)
"""


@dataclass(frozen=True)
class End:
    """How a conversion is ended: at a step, or after some seconds."""

    signal: signal.Signals
    step: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.signal.name} at {f'step {self.step}' if self.step else f'{self.seconds:.2f} s'}"
        )


class Conversions:
    """Conversions of the demo model in ``folder``, on few prompts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder / "place"
        self.place.mkdir()
        for name in ("harmful", "harmless"):
            lines = (DEMO / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            (folder / name).write_text("\n".join(lines[:PROMPTS]), encoding="utf-8")
        self.run("--over-refusal", "0.3")
        self.older = self.content()
        began = time.monotonic()
        *_, steps = self.run(step=0).splitlines()
        self.steps, self.seconds = int(steps), time.monotonic() - began
        self.newer = self.content()
        self.vector = read_vector(self.place / "v.gguf")

    def content(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.place.iterdir())}

    def start(self, *more: str, end: End | None = None, step: int | None = None) -> Process:
        """The command, which ends by itself, or at a step of ``end``."""
        module = ["-m", "mars_gguf.convert"]
        if end is not None and end.step:
            step = end.step
        if step is not None:
            number = end.signal if end is not None else 0
            module = ["-c", STEPPING, str(step), str(int(number)), str(self.place)]
        sets = [f"--{name}={self.folder / name}" for name in ("harmful", "harmless")]
        model = str(DEMO / "text-Q4_K_M.gguf")
        output = ["-o", str(self.place / "v.gguf"), "-q", "-t", "1"]
        return subprocess.Popen(
            [sys.executable, *module, model, *sets, *output, *more],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *more: str, step: int | None = None) -> str:
        """Run it to its end; what it prints."""
        process = self.start(*more, step=step)
        printed, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        return printed

    def until_it_writes(self, process: Process) -> None:
        """Waits until the conversion has begun."""
        while process.poll() is None and not (self.place / "v.measured").exists():
            time.sleep(0.005)


Process = subprocess.Popen[str]


def attack(conversions: Conversions, end: End) -> str:
    """Ends a conversion; what it left, in a word. Raises AssertionError where it must not."""
    for name, data in conversions.older.items():
        (conversions.place / name).write_bytes(data)
    process = conversions.start(end=end)
    if not end.step:
        if end.signal is signal.SIGINT:  # before, Python itself is interrupted
            conversions.until_it_writes(process)
        time.sleep(end.seconds)
        process.send_signal(end.signal)
    _, error = process.communicate(timeout=120)
    killed = process.returncode == -signal.SIGKILL
    left = look(conversions, killed)
    # -SIGINT is 130 to a shell: so Python ends, where Ctrl-C met it in an exec (an import's).
    assert killed or process.returncode in (0, 130, -signal.SIGINT), (process.returncode, error)
    assert "Traceback" not in error, error
    conversions.run()
    after = conversions.content()
    for name in [name for name in after if re.fullmatch(PARTIAL, name)]:
        (conversions.place / name).unlink()
        del after[name]
    assert list(after) == FILES, f"left after the next conversion: {sorted(after)}"
    again = read_vector(conversions.place / "v.gguf")
    a, b = again.geometry, conversions.vector.geometry
    assert again.layer == conversions.vector.layer
    for mine, other in ((a.safe, b.safe), (a.unsafe, b.unsafe), (a.readout, b.readout)):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4 * b.distance)
    same = after["v.gguf"] == conversions.newer["v.gguf"]
    return f"{left}, then {'the same vector' if same else 'the same vector up to rounding'}"


def look(conversions: Conversions, killed: bool) -> str:
    """What is there now, in a word; AssertionError unless it is whole."""
    content = conversions.content()
    others = [name for name in content if name not in FILES]
    expected = LEFT if killed else r"v\.measured"
    assert all(re.fullmatch(expected, name) for name in others), others
    read_vector(conversions.place / "v.gguf")
    older = [content[name] == conversions.older[name] for name in FILES]
    (named,) = re.findall(r"^sha256 +([0-9a-f]{64})$", content["v.md"].decode(), re.M)
    belongs = named == sha256(conversions.place / "v.gguf")
    assert content["v.md"].endswith(b"not on yours.\n"), "half a card"
    assert content["v.png"].endswith(b"IEND\xaeB`\x82"), "half a plot"
    if killed:
        # In this order they take their places: the card, the plot, the vector.
        assert older in ([True] * 3, [True, False, True], [True, False, False], [False] * 3), older
        assert belongs == (older[0] == older[1])
    else:
        assert older in ([True] * 3, [False] * 3), older
        assert belongs
    kept = " with what was measured" if "v.measured" in content else ""
    return {3: "all older", 0: "all newer"}.get(sum(older), "told apart") + kept


def ends(kills: int, seed: int, conversions: Conversions) -> list[End]:
    """Moments, half of them steps; each third by Ctrl-C."""
    rng = random.Random(seed)
    found = []
    for number in range(kills):
        by = signal.SIGINT if number % 3 == 2 else signal.SIGKILL
        step = rng.randint(1, conversions.steps) if number % 2 else 0
        late = conversions.seconds * (0.6 if by is signal.SIGINT else 0.95)
        found.append(End(by, step, 0.0 if step else rng.uniform(0, late)))
    return found
