"""Models are loaded by what they are, and what is unusual about them is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import DEMO
from templates import with_template
from thinking import ALWAYS, write_likely

from mars_gguf.convert.choices import CheckpointOptions, GgufOptions
from mars_gguf.convert.loader import is_gguf, load_extractor, make_room
from mars_gguf.convert.prompt_sets import PromptSets
from mars_gguf.convert.prompts import ContrastPrompts
from mars_gguf.errors import MarsError, ModelError


def test_any_file_is_for_llama_cpp_and_a_directory_or_a_hub_id_for_transformers(
    tmp_path: Path,
) -> None:
    assert is_gguf(DEMO) and is_gguf("no/such/MODEL.GGUF")
    assert not is_gguf(str(tmp_path)) and not is_gguf("ORG/NAME")


def test_how_prompts_are_written_is_said_where_the_model_does_not_say_it(tmp_path: Path) -> None:
    said: list[str] = []
    plain = with_template(tmp_path / "plain.gguf", None)
    thinking, _ = write_likely(tmp_path, "</think>", ALWAYS)
    for model, options in (
        (plain, GgufOptions(n_threads=1)),
        (plain, GgufOptions(n_threads=1, chat_handler="chatml")),
        (thinking, GgufOptions(n_threads=1)),
        (thinking, GgufOptions(n_threads=1, reasoning="off")),
    ):
        load_extractor(model, None, options, images=False, say=said.append).close()
    assert said == [
        "the model has no chat template: prompts are written as ChatML. --chat-handler chooses "
        "another way.",
        "--reasoning answer, as the chat template suggests",
    ]


def test_options_of_the_other_kind_of_model_are_refused() -> None:
    for model, options in ((DEMO, CheckpointOptions()), ("ORG/NAME", GgufOptions())):
        with pytest.raises(MarsError, match="Options go with"):
            load_extractor(model, None, options, images=False, say=print)


def test_a_longer_context_is_taken_and_said_unless_another_was_given() -> None:
    said: list[str] = []
    texts = [f"What is {i}?" for i in range(9)]
    long = PromptSets(ContrastPrompts([*texts, "Tea. " * 6000], texts))
    extractor = load_extractor(DEMO, None, GgufOptions(n_threads=1), images=False, say=said.append)
    make_room(extractor, PromptSets(ContrastPrompts(texts, texts)), said.append)
    assert said == []
    make_room(extractor, long, said.append)
    assert said == [
        f"the prompts need a context of {extractor.llama.n_ctx()} tokens, instead of 4096"
    ]
    extractor.close()
    bound = GgufOptions(n_threads=1, n_ctx=4096)
    extractor = load_extractor(DEMO, None, bound, images=False, say=said.append)
    with pytest.raises(ModelError, match="Give --ctx-size [0-9]+ or more"):
        make_room(extractor, long, said.append)
    extractor.close()
