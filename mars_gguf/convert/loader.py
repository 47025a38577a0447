"""Loads the model that a conversion measures: GGUF by llama.cpp, anything else by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Union

from mars_gguf.convert.choices import CheckpointOptions, GgufOptions
from mars_gguf.convert.prompt_sets import PromptSets
from mars_gguf.errors import MarsError

if TYPE_CHECKING:
    from mars_gguf.convert.extract_gguf import GgufExtractor
    from mars_gguf.convert.extract_transformers import TransformersExtractor

Say = Callable[[str], object]
"""Is called with what a user should know meanwhile, a line at a time."""
Loaded = Union["GgufExtractor", "TransformersExtractor"]


def is_gguf(model: str) -> bool:
    """Tells whether a model is for llama.cpp: any file is, and what is called as one."""
    return Path(model).is_file() or model.lower().endswith(".gguf")


def load_extractor(
    model: str,
    mmproj: str | None,
    options: GgufOptions | CheckpointOptions,
    *,
    images: bool,
    say: Say,
    verbose: bool = False,
) -> Loaded:
    """Loads a model to be measured.

    images: whether prompts will have pictures, if it takes them. Raises MarsError for options of
    the other kind of model, ModelError for a model that does not load.
    """
    extractor: Loaded
    if is_gguf(model):
        if isinstance(options, CheckpointOptions):
            raise MarsError(f"CheckpointOptions go with transformers models, {model} is a GGUF")
        extractor = _load_gguf(model, mmproj, options, say, verbose=verbose)
    elif isinstance(options, GgufOptions):
        raise MarsError(f"GgufOptions go with GGUF models, {model} is a transformers model")
    elif mmproj is not None:
        raise MarsError(f"--mmproj goes with GGUF models; {model} brings its own processor")
    else:
        from mars_gguf.convert.extract_transformers import TransformersExtractor

        extractor = TransformersExtractor(model, options, images=images, verbose=verbose)
    reasoning = extractor.fingerprint.reasoning
    if reasoning and getattr(options, "reasoning", None) is None:
        say(f"--reasoning {reasoning}, as the chat template suggests")
    return extractor


def _load_gguf(
    model: str, mmproj: str | None, options: GgufOptions, say: Say, *, verbose: bool
) -> GgufExtractor:
    from mars_gguf.convert.extract_gguf import GgufExtractor
    from mars_gguf.loading import say_if_without_template

    extractor = GgufExtractor(model, mmproj, **vars(options), verbose=verbose)
    if extractor.thinker is None and options.n_thought != GgufOptions.n_thought:
        extractor.close()
        raise MarsError(
            "--reasoning-budget is of thoughts, and this model is measured without any: it would "
            "change nothing. Leave it out, or give --reasoning answer to a model that thinks."
        )
    say_if_without_template(extractor.llama, options.chat_handler, say)
    return extractor


def make_room(extractor: Loaded, sets: PromptSets, say: Say) -> None:
    """Takes a context that all of ``sets`` fit into, and says if it is a longer one than usual.
    Raises ModelError if that was ruled out."""
    if extractor.backend != "llama.cpp":
        return
    from mars_gguf.convert.extract_gguf import N_CTX, GgufExtractor

    assert isinstance(extractor, GgufExtractor)
    lost = {id(context) for context in sets.contexts if not extractor.takes(context)}
    extractor.make_room([p for p in sets.longest() if id(p.context) not in lost])
    if extractor.grows and extractor.n_cells > N_CTX:
        say(f"the prompts need a context of {extractor.n_cells} tokens, instead of {N_CTX}")
