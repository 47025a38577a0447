"""A reply's thought and its answer."""

from __future__ import annotations

import pytest

from mars_gguf.reasoning import KNOWN, Markers, markers_in, said, split

each = pytest.mark.parametrize("markers", KNOWN, ids=str)


@each
def test_a_reply_is_taken_apart_where_its_thought_ends(markers: Markers) -> None:
    a, b = markers
    for text, opened, parts in [
        ("Hm.", False, ("", "Hm.")),
        ("Hm.", True, ("Hm.", None)),
        (f"Hm.{b}\n\nTea.", True, ("Hm.", "\n\nTea.")),
        (f"\n{a}Hm.{b}Tea.", False, ("Hm.", "Tea.")),
        (f"{a}Hm.{b}", False, ("Hm.", "")),
        (f"{a}Hm.", False, ("Hm.", None)),
        (f"{a}One.{b}\n{a}Two.{b}Tea.", False, ("One.\nTwo.", "Tea.")),
        (f"One.{b}{a}Two.", True, ("One.\nTwo.", None)),
        (f"Tea, {a} not {b}.", False, ("", f"Tea, {a} not {b}.")),
        ("", True, ("", None)),
        ("", False, ("", "")),
    ]:
        assert split(text, markers, opened) == parts
    assert split(f"{a}Hm.{b}Tea.", None, False) == ("", f"{a}Hm.{b}Tea.")


@each
def test_the_end_of_a_prompt_begins_or_ends_a_thought_whatever_spaces_follow(
    markers: Markers,
) -> None:
    for space in ("", "\n", " \n\n"):
        opened, closed = f"Hello {markers.open}{space}", f"Hello {markers.close}{space}"
        assert (markers.begun_by(opened), markers.ended_by(opened)) == (True, False)
        assert (markers.begun_by(closed), markers.ended_by(closed)) == (False, True)
        assert not markers.begun_by(opened + "Hm.") and not markers.ended_by(closed + "Hm.")


@each
def test_a_template_that_writes_both_markers_knows_thoughts(markers: Markers) -> None:
    assert markers_in(f"... {markers.open} ... {markers.close}") == markers
    assert markers_in(markers.open) is markers_in("") is None


@each
def test_of_an_earlier_reply_the_answer_counts(markers: Markers) -> None:
    a, b = markers
    assert said(f"{a}Hm.{b}\n\nTea. ") == said(f"Hm.{b}Tea.") == said(" Tea.") == "Tea."
    assert said(f"{a}Hm.") == said(f"Hm.{b}") == ""
