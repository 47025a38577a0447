"""Hidden states of checkpoints of transformers, with and without steering, and how they are
converted."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints  # skips these tests without torch and transformers
import llama_cpp
import numpy as np
import pytest
import torch
import transformers
from checkpoint_templates import PARTS, STRINGS
from checkpoints import BLOCKS, EVERY, LLAVA, TEXTS, WIDTH
from commands import convert as main
from commands import recipe
from models import OPTIONS, picture, random_llama, user

from mars_gguf.convert.choices import Calibration, CheckpointOptions
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.extract_transformers import TransformersExtractor
from mars_gguf.convert.extractor import observe
from mars_gguf.convert.pipeline import measure_vector
from mars_gguf.convert.prompt_sets import PromptSets
from mars_gguf.convert.prompts import ContrastPrompts, Preamble, Prompt, builtin_contrast
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.template import CHATML
from mars_gguf.vectors import read_vector

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("offline")]


def prompts_for(extractor: TransformersExtractor) -> list[Prompt]:
    """Of different lengths; with no, one and three pictures for models that see."""
    counts = (0, 1, 3) if extractor.sees_images else (0,)
    return [
        Prompt(text, tuple(picture(10 * k + i, 40) for k in range(count)))
        for count in counts
        for i, text in enumerate(TEXTS)
    ]


def reference(extractor: TransformersExtractor, prompt: Prompt) -> tuple[Any, Any]:
    """(hidden_states of the last token, logits) as transformers itself gives them, for one prompt
    alone: no padding, no cache, no hooks."""
    text = extractor.checkpoint.template.render(prompt)
    encode = extractor.checkpoint.processor if prompt.images else extractor.checkpoint.tokenizer
    images = {"images": [list(prompt.images)]} if prompt.images else {}
    inputs = encode(text=[text], add_special_tokens=False, return_tensors="pt", **images)
    if not prompt.images:
        inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        output = extractor.checkpoint.model(**inputs, output_hidden_states=True, use_cache=False)
    return [x[0, -1] for x in output.hidden_states], output.logits[0, -1]


@EVERY
def test_block_outputs_are_transformers_hidden_states_and_the_last_is_before_the_norm(
    checkpoint: str,
) -> None:
    extractor = TransformersExtractor(checkpoint, CheckpointOptions(batch_size=4))
    prompts = prompts_for(extractor)
    seen = 0
    for indices, session in extractor.sessions(prompts):
        states, logits = session.observe()
        assert states.shape == (len(indices), BLOCKS, WIDTH)
        for row, index in enumerate(indices):
            hidden, last = reference(extractor, prompts[index])
            for block in range(BLOCKS - 1):
                np.testing.assert_allclose(
                    states[row, block], hidden[block + 1].numpy(), rtol=1e-3, atol=1e-4
                )
            with torch.inference_mode():
                normed = extractor.checkpoint.model.get_decoder().norm(
                    torch.from_numpy(states[row, -1])
                )
            np.testing.assert_allclose(normed.numpy(), hidden[-1].numpy(), rtol=1e-3, atol=1e-4)
            assert not np.allclose(states[row, -1], hidden[-1].numpy(), rtol=1e-2)
            np.testing.assert_allclose(logits[row], last.numpy(), rtol=1e-3, atol=1e-3)
            seen += 1
    assert seen == len(prompts)


def greedy(
    extractor: TransformersExtractor, prompt: Prompt, n_tokens: int, layer: int, added: Any
) -> list[int]:
    """The tokens of a reply as transformers alone gives them, all evaluated again for each, with
    ``added`` at the last token of the prompt."""
    text = extractor.checkpoint.template.render(prompt)
    encode = extractor.checkpoint.processor if prompt.images else extractor.checkpoint.tokenizer
    images = {"images": [list(prompt.images)]} if prompt.images else {}
    inputs = encode(text=[text], add_special_tokens=False, return_tensors="pt", **images)
    length = inputs["input_ids"].shape[1]

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, length - 1] += torch.from_numpy(added)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    tokens: list[int] = []
    handle = extractor.checkpoint.model.get_decoder().layers[layer].register_forward_hook(hook)
    try:
        for _ in range(n_tokens):
            with torch.inference_mode():
                logits = extractor.checkpoint.model(**inputs, use_cache=False).logits[0, -1]
            tokens.append(int(logits.argmax()))
            for name, value in (("input_ids", tokens[-1]), ("attention_mask", 1)):
                more = torch.tensor([[value]])
                inputs[name] = torch.cat([inputs[name], more], 1)
            for name in ("token_type_ids", "mm_token_type_ids"):
                if name in inputs:
                    inputs[name] = torch.nn.functional.pad(inputs[name], (0, 1))
    finally:
        handle.remove()
    return tokens


@EVERY
def test_replies_are_those_of_transformers_alone_steered_and_not(checkpoint: str) -> None:
    extractor = TransformersExtractor(checkpoint, CheckpointOptions(batch_size=4))
    prompts, rng = prompts_for(extractor), np.random.default_rng(3)
    config, head = (
        extractor.checkpoint.model.config,
        extractor.checkpoint.model.get_output_embeddings(),
    )
    for name in ("image_token_id", "image_token_index"):  # which no reply may hold
        if (token := getattr(config, name, None)) is not None:
            head.weight.data[token] = 0
    said = set()
    for indices, session in extractor.sessions(prompts):
        states, _ = session.observe()
        additions = 2 * rng.normal(size=(len(indices), WIDTH)).astype(np.float32)
        pushes = [(layer, k * additions) for layer, k in ((1, 0), (1, 1), (BLOCKS - 1, 1))]
        steered = list(session.steered_replies(pushes, 4))
        assert steered[0] == session.replies(4)
        said.update(*steered)
        for (layer, rows), replies in zip(pushes, steered, strict=True):
            for index, row, reply in zip(indices, rows, replies, strict=True):
                expected = greedy(extractor, prompts[index], 4, layer, row)
                assert reply == extractor.checkpoint.reply(expected)
        np.testing.assert_array_equal(session.observe()[0], states)
    assert len(said) > len(prompts)  # some pushes tell


@pytest.mark.parametrize(
    ("template", "taken"),
    [
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>", True),
        ("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
         "<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>", False),
        ("{% for m in messages if m.role == 'user' %}<u>{{ m.content }}{% endfor %}<a>", False),
    ],
    ids=["writes", "raises", "drops"],
)  # fmt: skip
def test_a_context_is_taken_if_the_template_writes_it(
    template: str, taken: bool, tmp_path: Path
) -> None:
    extractor = TransformersExtractor(checkpoints.llama(tmp_path / "hf", template))
    system = {"role": "system", "content": "Be brief."}
    assert extractor.takes(Preamble("strict", (system,))) == taken
    assert extractor.takes(Preamble())


@pytest.mark.parametrize("template", [STRINGS, PARTS, checkpoints.TEMPLATE, CHATML])
def test_both_extractors_write_a_prompt_alike(template: str, tmp_path: Path) -> None:
    extractor = TransformersExtractor(checkpoints.llama(tmp_path / "hf", template))
    other = GgufExtractor(random_llama(tmp_path / "m.gguf", template=template), n_threads=1)
    prompt = Prompt(TEXTS[0])
    assert other.llama.template.render(
        prompt.messages
    ).text == extractor.checkpoint.template.render(prompt)
    assert not extractor.fingerprint.differing(
        replace(
            other.fingerprint, name="", quantization="", n_layer=4, n_embd=32, tokenizer_sha256=""
        )
    )
    other.close()


@LLAVA
def test_text_pictures_and_films_of_a_checkpoint_are_converted_in_half_precision(
    checkpoint: str, sets: list[str], tmp_path: Path
) -> None:
    prompts = {name[2:]: file for name, file in zip(sets[::2], sets[1::2], strict=True)}
    path = recipe(
        tmp_path, model={"path": checkpoint, "dtype": "bfloat16"}, prompts=prompts,
        neutral={"count": 64, "image_size": 32},
        calibration={"over_refusal": 0.5},  # of random weights, t may be anything
    )  # fmt: skip
    main(["--recipe", path, "-q"])
    vector = read_vector(tmp_path / "v.gguf")
    assert vector.modalities == ["text", "image", "video"]
    assert (vector.model.architecture, vector.model.quantization) == ("llama", "")
    assert vector.source["backend"] == f"transformers {transformers.__version__}"
    assert f"**{Path(checkpoint).name}**" in (tmp_path / "v.md").read_text()


# The same weights through both extractors --------------------------------------------------------


def test_states_of_a_gguf_are_those_of_the_checkpoint_of_its_weights(
    short_smollm2: str, tmp_path: Path
) -> None:
    """Of SmolLM2's first blocks in F32, both from its Q4_1 file: up to rounding; so the geometry,
    and a vector measured by either steers the quantized model."""
    folder = checkpoints.from_gguf(Path(short_smollm2), tmp_path / "checkpoint")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    parameters.allow_requantize = True
    files = short_smollm2.encode(), str(tmp_path / "f32.gguf").encode()
    assert llama_cpp.llama_model_quantize(*files, ctypes.byref(parameters)) == 0
    a = GgufExtractor(str(tmp_path / "f32.gguf"), n_threads=2, n_ctx=2048)
    b = TransformersExtractor(folder, CheckpointOptions(batch_size=32))
    assert not a.fingerprint.differences(b.fingerprint)
    for known in ("architecture", "tokenizer_sha256", "chat_template_sha256"):
        assert getattr(a.fingerprint, known) == getattr(b.fingerprint, known) != ""

    pairs = builtin_contrast()
    sets = PromptSets(ContrastPrompts(pairs.harmful[::12], pairs.harmless[::12]))
    some = [Prompt(text) for text in pairs.harmful[:8]]
    x, y = (observe(extractor, some, lambda n: None).states for extractor in (a, b))
    lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    assert ((x * y).sum(-1) / lengths).min() >= 0.9999
    ours, theirs = (
        measure_vector(e, sets, Calibration(layers=(4, 5)), source={}, progress=False).vector
        for e in (a, b)
    )
    g, h = ours.geometry, theirs.geometry
    assert ours.layer == theirs.layer
    assert g.direction @ h.direction / (g.distance * h.distance) > 0.9999
    assert g.spreads["text"] == pytest.approx(h.spreads["text"], rel=0.02)
    assert g.thresholds == pytest.approx(h.thresholds, abs=0.03)
    a.close()

    llama = SteeredLlama(short_smollm2, vector=theirs, **OPTIONS)
    llama.create_chat_completion([user(pairs.harmful[1])], max_tokens=1)
    assert llama.last_steering is not None and llama.last_steering.layer == theirs.layer
    llama.close()
