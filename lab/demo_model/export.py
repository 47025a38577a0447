"""Writes a checkpoint for llama.cpp and transformers.

``python -m lab.demo_model.export CHECKPOINTS OUT`` makes, in OUT,

text-f32.gguf, text-Q8_0.gguf, text-Q4_K_M.gguf    the language model, quantized by llama.cpp
mmproj-f16.gguf                                    vision tower and projector (LLaVA ``mlp``)
transformers/                                      a ``LlavaForConditionalGeneration`` directory

Needs torch, gguf, llama-cpp-python and, for the directory, transformers.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file
from torch import Tensor

from lab.demo_model.data import CHAT_TEMPLATE, END, IMAGE_TOKEN, STOP
from lab.demo_model.network import TEXT, VISION
from lab.demo_model.train import STAGES
from mars_gguf.demo_model.pictures import SIZE

NAME = "mars-demo"
Weights = dict[str, Tensor]

_TEXT_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_VISION_BLOCK = {
    "layer_norm1": "ln1",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


# Parameters of the checkpoint -> tensors of the GGUF files.
TEXT_NAMES = {
    "language_model.embed_tokens.weight": "token_embd.weight",
    "language_model.norm.weight": "output_norm.weight",
} | {
    f"language_model.layers.{block}.{ours}.weight": f"blk.{block}.{theirs}.weight"
    for block in range(TEXT.blocks)
    for ours, theirs in _TEXT_BLOCK.items()
}
_MMPROJ_MODULES = {
    "vision_tower.embeddings.patch_embedding": "v.patch_embd",
    **{
        f"vision_tower.encoder.layers.{block}.{ours}": f"v.blk.{block}.{theirs}"
        for block in range(VISION.blocks)
        for ours, theirs in _VISION_BLOCK.items()
    },
    "multi_modal_projector.linear_1": "mm.0",
    "multi_modal_projector.linear_2": "mm.2",
}
_POSITIONS = "v.position_embd.weight"
MMPROJ_NAMES = {"vision_tower.embeddings.position_embedding.weight": _POSITIONS} | {
    f"{ours}.{part}": f"{theirs}.{part}"
    for ours, theirs in _MMPROJ_MODULES.items()
    for part in ("weight", "bias")
}


def has_rotary_pairs(tensor: str) -> bool:
    """Whether the rows of this GGUF tensor are interleaved: the language model's q and k."""
    return tensor.startswith("blk.") and tensor.endswith(("attn_q.weight", "attn_k.weight"))


def _numpy(weight: Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(weight.float().cpu().numpy())


def _interleave(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Reorders query or key rows from half-split rotary pairs to llama.cpp's interleaved ones."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(rows, columns))


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_text(weights: Weights, tokenizer: Path, path: Path) -> None:
    """Writes the language model with its tokenizer and chat template, in float32."""
    described = json.loads(tokenizer.read_text())
    vocabulary = described["model"]["vocab"]
    special = {token["content"] for token in described["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if len(tokens) != TEXT.vocab:
        raise ValueError(
            f"{tokenizer} holds {len(tokens)} tokens, but the model has {TEXT.vocab} embeddings: "
            "use the tokenizer that the model was trained with"
        )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(NAME)
    writer.add_license("mit")
    writer.add_vocab_size(TEXT.vocab)
    writer.add_context_length(TEXT.context)
    writer.add_embedding_length(TEXT.d)
    writer.add_block_count(TEXT.blocks)
    writer.add_feed_forward_length(TEXT.feed_forward)
    writer.add_head_count(TEXT.heads)
    writer.add_head_count_kv(TEXT.heads)
    writer.add_layer_norm_rms_eps(TEXT.norm_eps)
    writer.add_rope_dimension_count(TEXT.d // TEXT.heads)
    writer.add_rope_freq_base(TEXT.rope_base)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    )
    merges = described["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(vocabulary[END])
    writer.add_eos_token_id(vocabulary[STOP])
    writer.add_pad_token_id(vocabulary[END])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for ours, theirs in TEXT_NAMES.items():
        weight = _numpy(weights[ours])
        if has_rotary_pairs(theirs):
            weight = _interleave(weight, TEXT.heads)
        writer.add_tensor(theirs, weight)
    _close(writer)


def write_mmproj(weights: Weights, path: Path) -> None:
    """Writes vision tower and projector; matrices in float16, the rest in float32."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_name(f"{NAME}-mmproj")
    writer.add_license("mit")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)  # the tanh one
    for key, value in {
        "image_size": VISION.size,
        "patch_size": VISION.patch,
        "embedding_length": VISION.d,
        "feed_forward_length": VISION.feed_forward,
        "block_count": VISION.blocks,
        "projection_dim": TEXT.d,
        "attention.head_count": VISION.heads,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", VISION.norm_eps)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    # Without this the graph stops one block early.
    writer.add_array("clip.vision.feature_layer", [VISION.blocks])

    for ours, theirs in MMPROJ_NAMES.items():
        weight = _numpy(weights[ours])
        half = weight.ndim > 1 and theirs != _POSITIONS
        writer.add_tensor(theirs, weight.astype(np.float16) if half else weight)
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


def write_transformers(weights: Weights, tokenizer: Path, folder: Path) -> None:
    """Writes a directory for ``LlavaForConditionalGeneration`` and ``AutoProcessor``."""
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer),
        bos_token=END,
        eos_token=STOP,
        pad_token=END,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        clean_up_tokenization_spaces=False,
    )
    end, stop, image = fast.convert_tokens_to_ids([END, STOP, IMAGE_TOKEN])
    model = LlavaForConditionalGeneration(_llava_config(end, stop, image))
    outcome = model.model.load_state_dict(weights, strict=False)
    # The last hidden state is taken before the tower's final norm, which has no part in this model.
    missing = [k for k in outcome.missing_keys if "post_layernorm" not in k]
    if missing or outcome.unexpected_keys:
        raise ValueError(
            f"weights and transformers' model differ: missing {missing}, "
            f"unexpected {outcome.unexpected_keys}"
        )
    model.tie_weights()
    model.generation_config.eos_token_id = stop
    model.save_pretrained(folder)
    _processor(fast).save_pretrained(folder)


def _llava_config(end: int, stop: int, image: int) -> Any:
    """Describes the model to transformers; the numbers are ids of the special tokens."""
    from transformers import LlamaConfig, LlavaConfig, SiglipVisionConfig

    text = LlamaConfig(
        vocab_size=TEXT.vocab,
        hidden_size=TEXT.d,
        intermediate_size=TEXT.feed_forward,
        num_hidden_layers=TEXT.blocks,
        num_attention_heads=TEXT.heads,
        num_key_value_heads=TEXT.heads,
        max_position_embeddings=TEXT.context,
        rms_norm_eps=TEXT.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": TEXT.rope_base},
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=stop,
        pad_token_id=end,
    )
    vision = SiglipVisionConfig(
        hidden_size=VISION.d,
        intermediate_size=VISION.feed_forward,
        num_hidden_layers=VISION.blocks,
        num_attention_heads=VISION.heads,
        image_size=VISION.size,
        patch_size=VISION.patch,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=VISION.norm_eps,
        vision_use_head=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        image_seq_length=VISION.tokens,
        projector_hidden_act="gelu_pytorch_tanh",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def _processor(tokenizer: Any) -> Any:
    """Makes what turns chats and pictures into transformers' inputs."""
    from transformers import LlavaProcessor, SiglipImageProcessor

    half = [0.5, 0.5, 0.5]
    images = SiglipImageProcessor(
        size={"height": SIZE, "width": SIZE}, image_mean=half, image_std=half
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=VISION.patch,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=0,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", default=STAGES[-1], help="whose weights to write")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    weights = load_file(args.checkpoints / f"{args.stage}.safetensors")
    tokenizer = args.checkpoints / "tokenizer.json"
    full = args.out / "text-f32.gguf"
    write_text(weights, tokenizer, full)
    write_mmproj(weights, args.out / "mmproj-f16.gguf")
    quantize(full, args.out / "text-Q8_0.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0)
    quantize(full, args.out / "text-Q4_K_M.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)
    write_transformers(weights, tokenizer, args.out / "transformers")
    for path in sorted(args.out.glob("*.gguf")):
        print(f"{path.name}  {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
