"""What a conversion takes of memory: recurrent states within a budget, and the context that its
prompts need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import llama_cpp as lib
from models import picture, tapped
from tiny import templates
from tiny.sliced import smolvlm

from mars_gguf.convert.choices import Prompts
from mars_gguf.convert.extract_gguf import N_CTX, GgufExtractor
from mars_gguf.convert.prompt_sets import gather, renderable
from mars_gguf.convert.prompts import Prompt
from mars_gguf.convert.refusals import N_TOKENS
from mars_gguf.errors import ModelError
from mars_gguf.runtime import prefill
from mars_gguf.runtime.tap import LayerOutput, Rows

TEXTS = [Prompt(f"Where do people keep {n} kites? " * (1 + n % 3)) for n in range(40)]


def state_bytes(extractor: GgufExtractor) -> int:
    """Bytes of one recurrent state."""
    llama = extractor.llama
    llama.eval([1])
    size = llama.context.memory.size()
    llama.reset()
    return size


def seen(extractor: GgufExtractor, prompts: list[Prompt]) -> tuple[Rows, list[int], list[str]]:
    """States, sizes of sessions, and replies to steered prompts."""
    states = np.empty((len(prompts), extractor.n_layer, extractor.n_embd), np.float32)
    replies, sizes = [""] * len(prompts), []
    for indices, session in extractor.sessions(prompts):
        states[indices] = session.observe()[0]
        push = (1, 3 * states[indices, 1])
        first, again = session.steered_replies([push, push], 2)
        assert first == again
        for i, reply in zip(indices, first, strict=True):
            replies[i] = reply.text
        sizes.append(len(indices))
    return states, sizes, replies


@pytest.mark.parametrize("model", ["hybrid", "recurrent"], indirect=True)
@pytest.mark.parametrize("at_once", [1, 3])
def test_recurrent_states_stay_within_the_budget_and_the_measurements_the_same(
    model: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = GgufExtractor(model, n_threads=1)
    size = state_bytes(many)
    assert many.decoder.n_sequences == prefill.MAX_SEQUENCES
    budget = 2 * at_once * size + size
    monkeypatch.setattr(prefill, "MAX_STATES", budget)
    few = GgufExtractor(model, n_threads=1)
    allocated = lib.llama_n_seq_max(few.llama.ctx) * size
    assert allocated <= budget < allocated + 2 * size
    (a, large, said), (b, small, same) = seen(many, TEXTS), seen(few, TEXTS)
    assert max(large) > at_once >= max(small) > 0
    assert np.abs(a - b).max() < 1e-3 * np.abs(a).max()
    assert said == same
    many.close()
    few.close()


# Contexts -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SmolVLM that cuts every picture into 144 slices."""
    folder = tmp_path_factory.mktemp("tiles")
    text, mmproj = smolvlm(templates.SMOLVLM)
    mmproj.set(preproc_image_size=12 * 56)
    text.write(folder / "model.gguf")
    mmproj.write(folder / "mmproj.gguf")
    return folder


def opened(folder: Path, **options: Any) -> GgufExtractor:
    files = str(folder / "model.gguf"), str(folder / "mmproj.gguf")
    return GgufExtractor(*files, n_threads=1, **options)


SHOWN = [
    Prompt("What is it?", (picture(1, 672),)),
    Prompt("What are these, and why?", (picture(1, 672), picture(2, 672))),
]


def test_pictures_that_need_a_longer_context_get_it(tiles: Path) -> None:
    extractor = opened(tiles)
    assert extractor.n_cells == N_CTX
    longest = max(map(extractor.length, SHOWN))
    assert longest > N_CTX
    found, _, _ = seen(extractor, SHOWN)
    assert extractor.n_cells == -(-(longest + N_TOKENS) // 256) * 256
    reference = tapped(
        str(tiles / "model.gguf"), mmproj=str(tiles / "mmproj.gguf"),
        n_ctx=8192, n_threads=1, n_threads_batch=1, verbose=False,
    )  # fmt: skip
    states: dict[int, Rows] = {}

    def visit(output: LayerOutput) -> None:
        states[output.layer] = output.read(output.n_rows - 1)[0]

    assert reference.projector is not None
    *head, tail = reference.chunks(SHOWN[1].messages)
    for chunk in head:
        if chunk.is_text:
            reference.eval(chunk.tokens)
        else:
            reference.n_tokens = reference.projector.decode(
                reference.ctx, chunk, reference.n_tokens
            )
    with reference.tap.visiting(range(reference.n_layer), visit):
        reference.eval(tail.tokens)
    expected = np.stack([states[layer] for layer in range(reference.n_layer)])
    assert np.abs(found[1] - expected).max() < 1e-2 * np.abs(expected).max()
    extractor.close()
    reference.close()


def test_a_context_that_was_given_is_kept_and_what_is_needed_is_said(tiles: Path) -> None:
    extractor = opened(tiles, n_ctx=N_CTX)
    needed = max(map(extractor.length, SHOWN)) + N_TOKENS
    padded = -(-needed // 256) * 256
    said = f"need {needed} tokens of context, found {N_CTX}. Give n_ctx .* {padded} or more"
    for ask in (extractor.make_room, lambda prompts: list(extractor.sessions(prompts))):
        with pytest.raises(ModelError, match=said):
            ask(SHOWN)
    extractor.close()
    fitting = opened(tiles, n_ctx=padded)
    fitting.make_room(SHOWN)
    assert fitting.n_cells == padded
    fitting.close()


def test_a_longer_context_is_said_and_all_that_a_conversion_asks_fits_into_it(tiles: Path) -> None:
    extractor, said = opened(tiles), list[str]()
    sets = gather(Prompts(probes=48), 0, sees=True)
    extractor.make_room([Prompt("Tea.")], said.append)
    assert said == []
    extractor.make_room(renderable(extractor, sets).longest(), said.append)
    n_cells = extractor.n_cells
    assert n_cells > N_CTX
    assert said == [f"the prompts need a context of {n_cells} tokens, instead of {N_CTX}"]
    prompts = [p for split in sets.media.values() for part in split for p in part]
    counted = [extractor.length(p) for p in prompts[:: len(prompts) // 12]]
    assert max(counted) + N_TOKENS <= n_cells
    extractor.close()
