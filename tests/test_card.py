"""The card and the plot of a conversion of a model of numpy alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from toys import Toy

from mars_gguf.convert.card import PARITY, card, split_parity
from mars_gguf.convert.pipeline import Conversion, Options, convert
from mars_gguf.convert.plot import write_plot


@pytest.fixture(scope="module")
def conversion() -> Conversion:
    toy = Toy({"harmful": 1, "harmless": 4}, pliable=(2,))
    source = {"backend": "toy", "model": "A model"}
    return convert(toy, toy.contrast(), {}, Options(), source=source, progress=False)


def test_a_card_names_the_model_the_block_and_every_candidate(conversion: Conversion) -> None:
    text = card(conversion, "v.gguf", "ab" * 32)
    assert text.startswith("# v.gguf\n\nA refusal-steering vector for **A model** (toy), made by")
    assert "python -m mars_gguf.chat --model MODEL.gguf --vector v.gguf" in text
    table = text[text.index("## Blocks") :].splitlines()[6:]
    assert [row.split(" | ")[0] for row in table[:4]] == ["| 1", "| **2**", "| 3", "| 4"]
    assert "ab" * 32 in text


def test_warnings_stand_on_a_card_before_any_number(conversion: Conversion) -> None:
    assert "## Warnings" not in card(conversion, "v.gguf", "")
    conversion.warnings.append("Look out.")
    text = card(conversion, "v.gguf", "")
    conversion.warnings.clear()
    assert text.index("- Look out.\n") < text.index("## Where prompts lie")


def test_a_parity_table_comes_off_a_card_as_it_was_put_on(conversion: Conversion) -> None:
    table = f"{PARITY}: a and b\n\n| 1 |\n"
    whole = card(conversion, "v.gguf", "", table)
    assert split_parity(whole) == (card(conversion, "v.gguf", "") + "\n", table)
    assert split_parity(card(conversion, "v.gguf", ""))[1] == ""


def test_the_plot_is_a_picture(conversion: Conversion, tmp_path: Path) -> None:
    write_plot(conversion, tmp_path / "v.png")
    Image.open(tmp_path / "v.png").verify()
