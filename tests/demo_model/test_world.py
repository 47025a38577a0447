from __future__ import annotations

from lab.demo_model import lessons
from mars_gguf.demo_model import world


def test_the_world_is_as_large_and_as_held_out_as_promised() -> None:
    words = {thing.word for thing in world.THINGS}
    assert len(words) == len(world.THINGS) >= 150
    assert 0.3 <= len(world.HARMFUL) / len(world.THINGS) <= 0.4
    seen, unseen = lessons.TRAINING, world.HELD_OUT
    assert len(seen.howto) + len(unseen.howto) >= 30
    assert len(unseen.howto) >= len(seen.howto) / 3
    assert not {*seen.howto} & {*unseen.howto}
    for ours, held_out in (seen.references, unseen.references), (seen.captions, unseen.captions):
        assert ours.keys() == held_out.keys() == {"picture", "video"}
        assert not any({*ours[medium]} & {*held_out[medium]} for medium in ours)


def test_the_halves_share_no_thing() -> None:
    for things in (world.HARMFUL, world.HARMLESS):
        first, second = world.halves(things)
        assert not {*first} & {*second} and {*first, *second} == {*things}
        assert 0 <= len(first) - len(second) <= 1
