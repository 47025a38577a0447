"""Writes a checkpoint for llama.cpp and transformers.

``python -m lab.demo_model.export CHECKPOINTS OUT`` makes, in OUT,

text-f32.gguf, text-Q8_0.gguf, text-Q4_K_M.gguf    the language model, quantized by llama.cpp
mmproj-f16.gguf                                    vision tower and projector (LLaVA ``mlp``)
transformers/                                      a ``LlavaForConditionalGeneration`` directory
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Sequence
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from torch import Tensor
from transformers import (
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from lab.demo_model.data import CHAT_TEMPLATE, END, IMAGE_TOKEN, PATCH, SPECIAL, STOP
from lab.demo_model.network import TEXT, VISION, new_model
from lab.demo_model.train import STAGES, load
from mars_gguf.demo_model.pictures import SIZE

NAME = "mars-demo"
HALF = [0.5, 0.5, 0.5]  # mean and deviation of pixels, by which bytes become [-1, 1]
PROJECTOR = {"linear_1": "mm.0", "linear_2": "mm.2"}  # as llama.cpp knows LLaVA's "mlp"
POSITIONS = "v.position_embd.weight"


def _numpy(weight: Tensor) -> np.ndarray:
    return np.ascontiguousarray(weight.detach().float().numpy())


def _interleaved(weight: np.ndarray) -> np.ndarray:
    """Reorders query or key rows from half-split rotary pairs to llama.cpp's interleaved ones."""
    heads = TEXT.num_attention_heads
    pairs = weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(weight.shape))


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_text(model: LlavaForConditionalGeneration, tokenizer: Path, path: Path) -> None:
    """Writes the language model with its tokenizer and chat template, in float32."""
    described = json.loads(tokenizer.read_text("utf-8"))["model"]
    vocabulary = described["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if len(tokens) != TEXT.vocab_size:
        raise ValueError(
            f"{tokenizer} holds {len(tokens)} tokens, but the model has {TEXT.vocab_size} "
            "embeddings: use the tokenizer that the model was trained with"
        )
    kinds = [gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(NAME)
    writer.add_license("mit")
    writer.add_vocab_size(TEXT.vocab_size)
    writer.add_context_length(TEXT.max_position_embeddings)
    writer.add_embedding_length(TEXT.hidden_size)
    writer.add_block_count(TEXT.num_hidden_layers)
    writer.add_feed_forward_length(TEXT.intermediate_size)
    writer.add_head_count(TEXT.num_attention_heads)
    writer.add_head_count_kv(TEXT.num_key_value_heads)
    writer.add_layer_norm_rms_eps(TEXT.rms_norm_eps)
    writer.add_rope_dimension_count(TEXT.head_dim)
    writer.add_rope_freq_base(TEXT.rope_parameters["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in described["merges"]])
    writer.add_bos_token_id(vocabulary[END])
    writer.add_eos_token_id(vocabulary[STOP])
    writer.add_pad_token_id(vocabulary[END])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, TEXT.num_hidden_layers)
    for key, weight in model.model.language_model.state_dict().items():
        name = names.get_name(f"model.{key}", (".weight",))
        rotary = name.endswith(("attn_q.weight", "attn_k.weight"))
        writer.add_tensor(name, _interleaved(_numpy(weight)) if rotary else _numpy(weight))
    _close(writer)


def write_mmproj(model: LlavaForConditionalGeneration, path: Path) -> None:
    """Writes vision tower and projector; matrices in float16, the rest in float32."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_name(f"{NAME}-mmproj")
    writer.add_license("mit")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)  # the tanh one
    for key, value in {
        "image_size": VISION.image_size,
        "patch_size": VISION.patch_size,
        "embedding_length": VISION.hidden_size,
        "feed_forward_length": VISION.intermediate_size,
        "block_count": VISION.num_hidden_layers,
        "projection_dim": TEXT.hidden_size,
        "attention.head_count": VISION.num_attention_heads,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", VISION.layer_norm_eps)
    writer.add_array("clip.vision.image_mean", HALF)
    writer.add_array("clip.vision.image_std", HALF)
    # Without this the graph stops one block early.
    writer.add_array("clip.vision.feature_layer", [VISION.num_hidden_layers])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, VISION.num_hidden_layers)
    tensors = {
        names.get_name(f"vision_tower.vision_model.{key}", (".weight", ".bias")): weight
        for key, weight in model.model.vision_tower.state_dict().items()
        if "post_layernorm" not in key  # the last states are taken before it
    }
    for key, weight in model.model.multi_modal_projector.state_dict().items():
        module, part = key.split(".")
        tensors[f"{PROJECTOR[module]}.{part}"] = weight
    for name, weight in tensors.items():
        half = weight.ndim > 1 and name != POSITIONS
        writer.add_tensor(name, _numpy(weight).astype(np.float16 if half else np.float32))
    _close(writer)


def quantize(source: Path, target: Path, file_type: int) -> None:
    """Quantizes a GGUF file by llama.cpp's own quantizer."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.nthread = 2
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    if status != 0:
        raise RuntimeError(f"llama.cpp could not quantize {source} to {target}: status {status}")


def write_transformers(model: LlavaForConditionalGeneration, tokenizer: Path, folder: Path) -> None:
    """Writes a directory for ``LlavaForConditionalGeneration`` and ``AutoProcessor``."""
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer),
        bos_token=END,
        eos_token=STOP,
        pad_token=END,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        clean_up_tokenization_spaces=False,
    )
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessor(
            size={"height": SIZE, "width": SIZE}, image_mean=HALF, image_std=HALF
        ),
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=0,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write(model: LlavaForConditionalGeneration, tokenizer: Path, out: Path) -> None:
    """Writes all files."""
    out.mkdir(parents=True, exist_ok=True)
    full = out / "text-f32.gguf"
    write_text(model, tokenizer, full)
    write_mmproj(model, out / "mmproj-f16.gguf")
    quantize(full, out / "text-Q8_0.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0)
    quantize(full, out / "text-Q4_K_M.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)
    write_transformers(model, tokenizer, out / "transformers")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", default=STAGES[-1], help="whose weights to write")
    args = parser.parse_args(argv)
    model = new_model()
    load(model, args.checkpoints / f"{args.stage}.safetensors")
    write(model, args.checkpoints / "tokenizer.json", args.out)
    for path in sorted(args.out.glob("*.gguf")):
        print(f"{path.name}  {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
