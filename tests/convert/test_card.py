"""The card of a conversion of a model of numpy alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toys import toy_measurement

from mars_gguf.convert.card import card
from mars_gguf.convert.extractor import Opening
from mars_gguf.convert.pipeline import Measurement
from mars_gguf.convert.prompts import Prompt


@pytest.fixture(scope="module")
def measurement() -> Measurement:
    return toy_measurement(model="A model")


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    rows = [
        row for row in text[text.index(heading) :].split("\n## ")[1].splitlines() if row[:1] == "|"
    ]
    return [row.strip("| ").split(" | ") for row in rows[2:]]


def test_a_card_names_the_model_the_block_and_every_candidate(measurement: Measurement) -> None:
    text = card(measurement, "v.gguf", "ab" * 32)
    assert text.startswith("# v.gguf\n\nA refusal-steering vector for **A model** (toy), made by")
    assert "python -m mars_gguf.chat --model MODEL.gguf --vector v.gguf" in text
    assert [row[0] for row in table(text, "\n## Blocks")] == ["1", "**2**", "3", "4", "5"]
    assert "ab" * 32 in text


def test_a_card_says_what_opens_the_gate_of_every_sort_and_what_forced_replies_say(
    measurement: Measurement,
) -> None:
    text = card(measurement, "v.gguf", "")
    certificate = measurement.certificate
    expected = [
        [f"{row.modality}, {row.group}" if row.group else f"**{row.modality}**", str(row),
         f"{row.bound:.1%}"]
        for row in certificate.neutral
    ]  # fmt: skip
    assert table(text, "\n## What opens the gate") == expected
    assert {row[0] for row in expected} >= {"**text**", "text, form: borderline"}
    assert f"Of harmful text the gate opens for **{certificate.caught}**" in text
    for prompt, reply in measurement.examples:
        assert f"- `{prompt.text}` -> `{reply.text}`" in text


def test_what_a_model_replies_cannot_break_out_of_its_line_of_a_card(
    measurement: Measurement,
) -> None:
    wild = Opening(0, "`|\n# Heading\n\x1b[2J</script>")
    shown = replace(measurement, examples=[(Prompt("a `b`\nc"), wild)])
    assert r"- `a 'b'\nc` -> `'|\n# Heading\n\x1b[2J</script>`" + "\n" in card(shown, "v.gguf", "")


def test_the_name_of_a_model_is_text() -> None:
    text = card(toy_measurement(model="<b>![](http://a/b.png)\n# A"), "v.gguf", "")
    assert r"for **\<b\>!\[\](http://a/b.png) \# A** (toy)" in text


def test_warnings_stand_on_a_card_before_any_number(measurement: Measurement) -> None:
    assert "## Warnings" not in card(measurement, "v.gguf", "")
    measurement.warnings.append("Look out.")
    text = card(measurement, "v.gguf", "")
    measurement.warnings.clear()
    assert text.index("- Look out.\n") < text.index("## Where prompts lie")
