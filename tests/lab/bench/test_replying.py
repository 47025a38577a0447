"""Replies: each model is asked what its figure says. No times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import DEMO_MMPROJ, vector
from subjects import subject

from lab.bench import replying
from lab.bench.figures import Figure, ratios
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.tap import Tap
from mars_gguf.vectors import write_vector


def test_steered_and_plain_do_the_work_that_the_figures_name() -> None:
    measured = {name: Figure.named(name) for name in replying.TRIALS}
    replying.measure_replies(list(measured.values()), subject())
    for name, f in measured.items():
        if replying.TRIALS[name][0] == "C" and not Tap().compiled:
            assert "not built" in f.absent
            continue
        assert len(f.samples) == 2
        plain, again, compared = f.values.values()
        speed = name.startswith("generation")
        for found, other in ((f.samples, compared), (f.control, again)):
            assert found == (ratios(plain, other) if speed else ratios(other, plain))
        # All figures of one kind are of the same runs of the plain model.
        kind = "generation-control" if speed else "first-token-control"
        assert plain == measured[kind].values["plain"]
    for name in ("first-token-control", "generation-python", "first-token-cvec"):
        assert measured[name].aim is None


def test_each_model_is_asked_what_its_figure_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any, int, int]] = []

    def reply(llama: Any, tokens: list[int], n_reply: int) -> tuple[float, float]:
        steered = isinstance(llama, replying.SteeredLlama)
        seconds = found(llama, tokens, n_reply)
        kind = ("C" if llama.tap.compiled else "Python") if steered else "plain"
        way = llama.last_steering.way if steered else None
        asked.append((kind, way, len(tokens), n_reply))
        return seconds

    found = replying.reply
    monkeypatch.setattr(replying, "reply", reply)
    runs: list[tuple[str, Any]] = [("plain", None), ("Python", None)]
    if Tap().compiled:
        runs += [("C", None), ("C", "inline"), ("C", "cvec")]
    taken = replying._take(subject(), [1, 5, 6, 7], 3, runs)
    assert all(len(seconds) == 2 for seconds in taken.values())
    models = len({kind for kind, _ in runs})
    expected = [(kind, way, 4, 0 if way else 3) for kind, way in runs]
    there_and_back = [*expected, *expected[::-1]]
    assert asked[models:][: len(there_and_back)] == there_and_back
    assert asked[-len(there_and_back) :] == [*expected[::-1], *expected]


def test_a_memory_that_cannot_rewind_has_no_cvec(hybrid: str, tmp_path: Path) -> None:
    write_vector(vector(hybrid), tmp_path / "v.gguf")
    given = replace(subject(), model=hybrid, vector=str(tmp_path / "v.gguf"))
    python, cvec = map(Figure.named, ("first-token-python", "first-token-cvec"))
    replying.measure_replies([python, cvec], given)
    assert "rewound" in cvec.absent or not Tap().compiled
    assert len(python.samples) == 2


def test_four_pictures_are_judged_alone_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[bool] = []
    ask = SteeredLlama.create_chat_completion

    def noting(self: SteeredLlama, *args: Any, **kwargs: Any) -> object:
        reply = ask(self, *args, **kwargs)
        judged.append(self.last_steering is not None)
        return reply

    monkeypatch.setattr(SteeredLlama, "create_chat_completion", noting)
    figure, blind = (Figure.named("first-token-pictures") for _ in range(2))
    replying.pictures(figure, subject(DEMO_MMPROJ))
    assert sorted(judged) == [False] * 3 + [True] * 3  # the first of each warms it up
    assert len(figure.samples) == 2 and min(figure.values["judged"]) > 0
    replying.pictures(blind, subject())
    assert (blind.samples, blind.absent) == ([], "no mmproj")
