"""Conversions of the shipped model, and of a real quantized chat model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import Llama
from models import DEMO, DEMO_MMPROJ, OPTIONS, last_states, user
from toys import Toy

from mars_gguf import demo, demo_model
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.pipeline import Conversion, Options, convert
from mars_gguf.convert.prompts import ContrastPrompts, Prompt, builtin_contrast, read_prompts
from mars_gguf.convert.splits import split
from mars_gguf.errors import MarsError
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.model import TappedLlama
from mars_gguf.steering import coordinate
from mars_gguf.vectors import read_vector, write_vector

SOURCE = {"backend": "llama.cpp"}


@pytest.fixture(scope="module")
def conversion() -> Conversion:
    return demo.convert_demo_model(threads=1, progress=False)


@pytest.fixture
def extractor() -> Iterator[GgufExtractor]:
    extractor = GgufExtractor(DEMO, n_threads=1, n_ctx=2048)
    yield extractor
    extractor.close()


@pytest.fixture(scope="module")
def contrast() -> ContrastPrompts:
    folder = demo_model.FOLDER
    return ContrastPrompts(
        read_prompts(folder / "harmful.jsonl"), read_prompts(folder / "harmless.jsonl")
    )


def test_the_centroids_are_the_means_of_states_read_one_by_one(
    conversion: Conversion, contrast: ContrastPrompts
) -> None:
    vector = conversion.vector
    llama = TappedLlama(DEMO, **OPTIONS)
    for prompts, centroid in (
        (contrast.harmless, vector.geometry.safe),
        (contrast.harmful, vector.geometry.unsafe),
    ):
        fitted, _ = split(prompts, Options().held_out, Options().seed)
        states = [
            last_states(llama, *llama.chunks(Prompt(text).messages))[vector.layer]
            for text in fitted
        ]
        mean = np.mean(states, axis=0, dtype=np.float64)
        # One by one and in batches, quantized products round differently.
        distance = np.linalg.norm(mean - centroid) / vector.geometry.distance
        assert distance < 0.02
    llama.close()


def test_a_second_conversion_writes_the_same_bytes(conversion: Conversion, tmp_path: Path) -> None:
    again = demo.convert_demo_model(threads=1, progress=False)
    for name, one in (("first", conversion), ("second", again)):
        write_vector(one.vector, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_the_vector_in_the_package_is_what_a_conversion_measures(conversion: Conversion) -> None:
    """Bytes differ between processors; the block and the geometry do not."""
    shipped, made = read_vector(demo_model.VECTOR), conversion.vector
    assert shipped.layer == made.layer
    assert shipped.model == made.model
    a, b = shipped.geometry, made.geometry
    cosine = a.direction @ b.direction / (a.distance * b.distance)
    assert cosine > 0.999
    assert a.spreads == pytest.approx(b.spreads, rel=0.1)
    assert a.gate_opens == pytest.approx(b.gate_opens, rel=0.15)


def test_held_out_text_lies_at_the_centroids_it_was_not_measured_on(
    conversion: Conversion,
) -> None:
    layer, t = conversion.vector.layer, conversion.coordinates
    assert abs(t["harmful text"][:, layer].mean() - 1) < 0.2
    assert abs(t["harmless text"][:, layer].mean()) < 0.2
    assert conversion.scores.separation[layer] > 0.95


def test_media_are_recentred_on_the_safe_centroid(conversion: Conversion) -> None:
    """The re-centred mean of fresh neutral pictures lies far nearer to safe than the gate."""
    g, layer = conversion.vector.geometry, conversion.vector.layer
    probes = demo.paired_probes(demo_model.FOLDER / "neutral.jsonl")
    extractor = GgufExtractor(DEMO, DEMO_MMPROJ, n_threads=1)
    for modality, prompts in probes.items():
        states = np.concatenate(
            [session.observe()[0][:, layer] for _, session in extractor.sessions(prompts)]
        )
        t = coordinate(states - g.shifts[modality], g.safe, g.readout)
        assert abs(t.mean()) < 0.5 * g.gate_opens * g.spreads[modality]
        opened = (t / g.spreads[modality] > g.gate_opens).mean()
        assert opened <= 2.5 * Options().over_refusal
    extractor.close()


def test_the_chosen_block_is_the_best_of_the_candidates(conversion: Conversion) -> None:
    scores = conversion.scores
    assert conversion.vector.layer == int(np.nanargmax(scores.total))
    assert np.flatnonzero(~np.isnan(scores.total)).tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_a_text_only_conversion_needs_no_mmproj(
    extractor: GgufExtractor, contrast: ContrastPrompts
) -> None:
    made = convert(extractor, contrast, {}, Options(), source=SOURCE, progress=False)
    assert made.vector.modalities == ["text"]
    assert not made.warnings
    # By default candidates end at 80 % of the depth.
    assert np.flatnonzero(~np.isnan(made.scores.total)).tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("harmful", "harmless", "expected"),
    [
        (["a"] * 7, ["b"] * 9, "harmful prompts: found 7"),
        ([f"What is {i}?" for i in range(9)], [], "harmless prompts: found 0"),
        (
            [f"What is {i}?" for i in range(16)],
            [f"What is {i}?" for i in range(16)],
            "the same mean hidden state",
        ),
    ],
)
def test_prompt_sets_that_cannot_work_are_refused(
    extractor: GgufExtractor, harmful: list[str], harmless: list[str], expected: str
) -> None:
    with pytest.raises(MarsError, match=expected):
        convert(
            extractor, ContrastPrompts(harmful, harmless), {}, Options(),
            source=SOURCE, progress=False,
        )  # fmt: skip


@pytest.mark.parametrize("strides", [{"harmful": 2, "harmless": 3}, {"harmful": 1, "harmless": 4}])
def test_only_prompts_that_become_refusals_count_as_effect(strides: dict[str, int]) -> None:
    """With little contrast and with much: prompts that were refused anyway are no effect."""
    pliable = Toy(strides, pliable=(2, 3))
    made = convert(pliable, pliable.contrast(), {}, Options(), source=SOURCE, progress=False)
    np.testing.assert_array_equal(made.scores.effect[1:5], [0, 1, 1, 0])
    assert made.vector.layer in (2, 3)
    assert (made.refusal.contrast < 0.2) == (strides["harmful"] == 2)
    assert not any("chosen by separation" in warning for warning in made.warnings)


@pytest.mark.parametrize("strides", [{"harmful": 2, "harmless": 3}, {"harmful": 1, "harmless": 1}])
def test_without_any_effect_a_block_is_chosen_by_separation_and_headroom_and_it_says_so(
    strides: dict[str, int],
) -> None:
    stubborn = Toy(strides)
    made = convert(stubborn, stubborn.contrast(), {}, Options(), source=SOURCE, progress=False)
    scores = made.scores
    assert not scores.effect[1:5].any()
    ranked = scores.separation[1:5] * (1 - np.clip(scores.threshold["text"][1:5], 0, 1))
    assert ranked.argmax() > 0  # not merely the first candidate
    assert made.vector.layer == 1 + int(ranked.argmax())
    assert f"block {made.vector.layer} is chosen by separation" in " ".join(made.warnings)


def test_block_ranges_outside_the_model_are_refused(
    extractor: GgufExtractor, contrast: ContrastPrompts
) -> None:
    with pytest.raises(MarsError, match="layers: found 0 to 3, expected a range within 1 to"):
        convert(extractor, contrast, {}, Options(layers=(0, 3)), source=SOURCE, progress=False)


def test_a_real_chat_model_converts_and_steers(smollm2: str, tmp_path: Path) -> None:
    """It hardly refuses, and says so; what counts is that the file steers this very model."""
    pairs = builtin_contrast()
    extractor = GgufExtractor(smollm2, n_threads=2, n_ctx=2048)
    made = convert(
        extractor,
        ContrastPrompts(pairs.harmful[::8], pairs.harmless[::8]),
        {},
        Options(layers=(14, 16), over_refusal=0.1),
        source=SOURCE,
        progress=False,
    )
    extractor.close()
    assert any("seldom refuses" in warning for warning in made.warnings)
    assert made.scores.separation[made.vector.layer] > 0.8
    path = tmp_path / "smollm2.gguf"
    write_vector(made.vector, path)

    plain = Llama(smollm2, n_ctx=512, n_threads=2, verbose=False)
    steered = SteeredLlama(smollm2, vector=path, n_ctx=512, n_threads=2, verbose=False)
    greedy: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}

    def mean_t(texts: Sequence[str]) -> float:
        options = greedy | {"max_tokens": 1}
        return float(
            np.mean(
                [steered.create_chat_completion([user(x)], **options)["mars"]["t"] for x in texts]
            )
        )

    assert mean_t(pairs.harmful[1::32]) > mean_t(pairs.harmless[1::32]) + 0.3

    geometry = made.vector.geometry
    message = [user("What is the capital of France?")]
    before = plain.create_chat_completion(message, **greedy)["choices"]
    for opens, changes in ((1e9, False), (-1e9, True)):
        forced = replace(geometry, gate_opens=opens, trust_limit=3.0)
        steered.vector = replace(made.vector, geometry=forced)
        after = steered.create_chat_completion(message, **greedy)
        assert (after["choices"] != before) == changes
        assert (after["mars"]["alpha"] > 0) == changes
    plain.close()
    steered.close()
