from __future__ import annotations

from reader_inputs import (
    BLOCK,
    no_bar,
)

from lab.reader import suite, tried
from lab.reader.grid import Writer
from lab.reader.rules import rules
from lab.reader.states import (
    Seen,
    TailExtractor,
)
from lab.reader.tried import by_rule, steered


def test_every_alternative_has_a_row(seen: Seen, tails: TailExtractor) -> None:
    every = list(rules(tails.n_layer, BLOCK))
    assert len({rule.name for rule in every}) == len(every)
    lines = by_rule(every, seen).splitlines()
    assert len(lines) == len(every) + 3
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_what_the_model_refuses_anyway_is_not_forced(seen: Seen, tails: TailExtractor) -> None:
    """All that is harmful; and what is harmless is refused by force."""
    _, _, *rows = steered(tails, seen, (BLOCK,), no_bar).splitlines()
    (row,) = rows
    assert row.startswith(f"| block {BLOCK} | harmless, 10 requests |")
    assert "| 100 |" in row


def test_what_is_tried_is_tried_on_requests_that_are_not_held_out(writer: Writer) -> None:
    found = tried.requests(writer, 5)
    assert set(found) == {(form, kind) for form in tried.FORMS for kind in suite.KINDS}
    topics = {(kind, prompt): int(topic) for kind, topic, prompt in suite.requests()}
    for (form, kind), prompts in found.items():
        assert 0 < len(prompts) <= 5
        assert {p.modality for p in prompts} == {"text" if form == "text" else "image"}
        if form == "text":
            chosen = [topics[kind, p.text] for p in prompts]
            assert not any(topic % 2 for topic in chosen)
            assert max(chosen) > max(topics.values()) / 2
    assert not any(map(suite.held_out, tried.FORMS))
