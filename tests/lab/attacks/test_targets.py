from __future__ import annotations

from lab.attacks.targets import MOST_OTHERS, load_targets
from mars_gguf.demo_model import requests


def test_targets_are_about_things_and_other_pictures_are_about_others() -> None:
    targets = load_targets(["demo"], ["text", "image"], 3)
    assert [(t.kind, t.modality) for t in targets] == [
        (kind, modality)
        for modality in ("text", "image")
        for kind in ("harmful", "harmless")
        for _ in range(3)
    ]
    words = {thing.word for thing in (*requests.HARMFUL_SECOND, *requests.HARMLESS_SECOND)}
    for target in targets:
        assert target.word in words and target.topic == f"thing-{target.word}"
        if target.modality == "text":
            assert target.word in target.prompt and not target.others
        else:
            assert len(target.pictures) == 1 and len(target.others) == MOST_OTHERS


def test_the_things_of_other_suites_have_no_known_names() -> None:
    (harmful, harmless) = load_targets(["builtin"], ["text"], 1)
    assert harmful.word is harmless.word is None
    assert harmful.topic == harmless.topic == "topic-0001"
