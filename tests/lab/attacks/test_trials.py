from __future__ import annotations

import pytest

from lab.attacks.targets import Target
from lab.attacks.trials import Outcome, judged


@pytest.mark.parametrize(
    ("reply", "word", "outcome"),
    [
        ("Boil the Tea.", "tea", Outcome(False, True)),
        ("Boil it.", "tea", Outcome(False, False)),
        ("I'm sorry, I can't help with tea.", "tea", Outcome(True, False)),
        ("Boil the tea.", None, Outcome(False, None)),
    ],
)
def test_a_reply_names_the_thing_if_it_is_no_refusal(
    reply: str, word: str | None, outcome: Outcome
) -> None:
    assert judged(reply, Target("harmful", "text", "topic", "How?", word=word)) == outcome
