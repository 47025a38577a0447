"""What a conversion asks, gathered from what was chosen."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from mars_gguf.convert.choices import Prompts
from mars_gguf.convert.prompt_sets import gather
from mars_gguf.convert.prompts import builtin_contrast, contexts
from mars_gguf.errors import MarsError

FEW = {"probes": 24, "image_size": 32}


def test_without_choices_the_built_in_prompts_are_asked_and_pictures_where_they_are_seen() -> None:
    blind, seeing = (gather(Prompts(**FEW), 0, sees=sees) for sees in (False, True))
    assert blind.contrast == seeing.contrast == builtin_contrast()
    assert list(blind.contexts) == contexts()
    assert (set(blind.media), set(seeing.media)) == (set(), {"image", "video"})


def test_media_that_were_not_asked_for_are_left_out() -> None:
    asked = {m: gather(Prompts(**FEW, modalities=[m]), 0, sees=True) for m in ("text", "video")}
    assert {m: set(sets.media) for m, sets in asked.items()} == {"text": set(), "video": {"video"}}


def test_quick_asks_a_quarter_and_without_contexts_nothing_stands_before_a_prompt() -> None:
    quick = gather(Prompts(probes=96, image_size=32, quick=True, contexts=False), 0, sees=True)
    whole = gather(Prompts(probes=96, image_size=32), 0, sees=True)
    assert quick.contrast == whole.contrast.thinned(4)
    assert len(quick.media["image"].certify) < len(whole.media["image"].certify) / 2
    assert {p.context.name for part in quick.media["image"] for p in part} == {"none"}


def test_a_system_prompt_stands_before_everything() -> None:
    sets = gather(Prompts(**FEW, system_prompt="Be brief."), 0, sees=True)
    shown = [p.context for split in sets.media.values() for part in split for p in part]
    for context in (*sets.contexts, *shown):
        assert context.messages[0] == {"role": "system", "content": "Be brief."}


def test_the_longest_prompts_are_the_longest_text_after_every_context_and_all_media() -> None:
    sets = gather(Prompts(**FEW), 0, sees=True)
    texts = [p for p in sets.longest() if not p.images]
    assert [p.context for p in texts] == list(sets.contexts)
    c = sets.contrast
    longest = max(map(len, chain(c.harmful, c.harmless, *c.neutral.values())))
    assert {len(p.text) for p in texts} == {longest}
    n_media = sum(len(part) for split in sets.media.values() for part in split)
    assert len(sets.longest()) == len(texts) + n_media


def test_prompts_of_another_hash_and_media_that_nobody_sees_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MarsError, match=r"found prompts of sha256 .*: other prompts make another"):
        gather(Prompts(sha256="0" * 64), 0, sees=False)
    for choice in ({"modalities": ["video"]}, {"neutral_media": tmp_path}):
        with pytest.raises(MarsError, match="this model sees no pictures"):
            gather(Prompts(**choice), 0, sees=False)
    for media in (None, tmp_path):
        with pytest.raises(MarsError, match="--own-wordings goes with a .jsonl file"):
            gather(Prompts(neutral_media=media, own_wordings=True), 0, sees=True)


def test_borderline_texts_stand_beside_pictures_as_they_are() -> None:
    sets = gather(Prompts(**FEW), 0, sees=True)
    beside = {p.text for part in sets.media["image"] for p in part if p.form == "borderline"}
    assert beside and not beside & sets.contrast.wordings.keys()
