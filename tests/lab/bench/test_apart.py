"""Several pictures: judged alone by the one, not by the other. No times."""

from __future__ import annotations

import pytest
from models import DEMO_MMPROJ
from subjects import subject

from lab.bench import apart
from lab.bench.subject import Asked
from mars_gguf.runtime.llama import SteeredLlama


def test_four_pictures_are_judged_alone_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    ask = SteeredLlama.create_chat_completion

    def noting(self: SteeredLlama, *args: object, **kwargs: object) -> object:
        reply = ask(self, *args, **kwargs)
        seen.append(len(self.steerer.turns.reply.apart.seen or ()))
        assert (self.last_steering is None) == (seen[-1] == 0)
        return reply

    monkeypatch.setattr(SteeredLlama, "create_chat_completion", noting)
    (figure,) = apart.measure(subject(DEMO_MMPROJ), Asked([apart.NAME], 2))
    assert sorted(seen) == [0] * 3 + [4] * 3  # the first of each warms it up
    assert len(figure.samples) == 2 and min(figure.values["judged"]) > 0


def test_nothing_is_measured_of_a_model_that_sees_nothing() -> None:
    (figure,) = apart.measure(subject(), Asked([apart.NAME]))
    assert (figure.samples, figure.absent) == ([], "no mmproj")
