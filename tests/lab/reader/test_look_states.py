"""Looks at the shipped model, against prompts that are longer by the look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from models import DEMO, DEMO_MMPROJ
from reader_inputs import no_bar, requests

from lab.reader import look_states
from lab.reader.look_states import LookingExtractor, observe, seen_blocks, suffix
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.extractor import observe as observe_plainly
from mars_gguf.convert.prompts import Prompt
from mars_gguf.runtime.prefill import CachedPrompt


class Longer(GgufExtractor):
    """Prompts end with ``more`` tokens."""

    more: Sequence[int] = ()

    def cached(self, prompt: Prompt, number: int = 0) -> CachedPrompt:
        cached = super().cached(prompt, number)
        cached.tail = [*cached.tail, *self.more]
        return cached


@pytest.fixture
def looking() -> Iterator[LookingExtractor]:
    extractor = LookingExtractor(DEMO, DEMO_MMPROJ, n_threads=1)
    yield extractor
    extractor.close()


@pytest.fixture
def longer() -> Iterator[Longer]:
    extractor = Longer(DEMO, DEMO_MMPROJ, n_threads=1)
    yield extractor
    extractor.close()


def test_a_look_reads_what_a_longer_prompt_ends_with_and_leaves_nothing(
    looking: LookingExtractor, longer: Longer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_states, "LOOKS", {"one": "Yes", "two": "The user asks"})
    sets = {"judge": requests()["image", "harmful"][:2] + requests()["text", "harmful"][:2]}
    found = observe(looking, sets, tmp_path, no_bar)["judge"]
    looks = [(), *(suffix(looking, text) for text in look_states.LOOKS.values())]
    assert len({len(tokens) for tokens in looks}) > 1
    for view, longer.more in enumerate(looks):
        longer.forget()
        expected = observe_plainly(longer, sets["judge"], no_bar)
        states = expected.states[:, seen_blocks(looking.n_layer)]
        atol = 0.02 * np.abs(states).max()
        np.testing.assert_allclose(found.states[:, view], states, rtol=0.02, atol=atol)
        if not view:
            plain = observe_plainly(longer, sets["judge"], no_bar, n_tokens=look_states.N_TOKENS)
            assert found.replies == [reply.text for reply in plain.replies]


def test_what_is_there_is_not_measured_again(tmp_path: Path, looking: LookingExtractor) -> None:
    sets = {"fit": requests()["text", "harmless"][:2]}
    first = observe(looking, sets, tmp_path, no_bar)["fit"]
    assert first.replies == ["", ""]
    (tmp_path / "fit.npz").rename(tmp_path / "other.npz")
    again = observe(looking, {"other": sets["fit"] * 2}, tmp_path, no_bar)["other"]
    np.testing.assert_array_equal(again.states, first.states)
