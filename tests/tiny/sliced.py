"""The families that cut large pictures into slices."""

from __future__ import annotations

import numpy as np

from .templates import Chat
from .writer import Mmproj, Pair, TextModel


def internvl_qwen_2(chat: Chat) -> Pair:
    text = TextModel("qwen2", chat, "<img>", "</img>")
    text.transformer(qkv_bias=True)
    return text, internvl(text)


def internvl_qwen_3(chat: Chat) -> Pair:
    text = TextModel("qwen3", chat, "<img>", "</img>")
    text.transformer(qk_norm=True)
    return text, internvl(text)


def internvl(text: TextModel) -> Mmproj:
    mmproj = Mmproj("internvl", text)
    mmproj.set(**{"projector.scale_factor": 2})
    mmproj.class_token()
    for block in mmproj.blocks:
        mmproj.ones(f"{block}.ls1.weight", mmproj.n_embd)
        mmproj.ones(f"{block}.ls2.weight", mmproj.n_embd)
    wide = 4 * mmproj.n_embd
    mmproj.norm("mm.model.mlp.0", wide, bias=True)
    mmproj.linear("mm.model.mlp.1", wide, text.n_embd, bias=True)
    mmproj.linear("mm.model.mlp.3", text.n_embd, text.n_embd, bias=True)
    return mmproj


def minicpm_v(chat: Chat) -> Pair:
    """As version 2.6. The resampler's heads are of 128, so nothing smaller fits."""
    text = TextModel("qwen2", chat, *SLICES, n_embd=128)
    text.transformer(qkv_bias=True)
    return text, resampler(text, version=3)


def minicpm_v_2(chat: Chat) -> Pair:
    """As version 2: embeddings, blocks and logits are scaled."""
    text = TextModel("minicpm", chat, *SLICES, n_embd=128).transformer()
    text.set(embedding_scale=1.5, residual_scale=0.8, logit_scale=1.0)
    return text, resampler(text, version=2)


SLICES = ("<image>", "</image>", "<slice>", "</slice>")


def resampler(text: TextModel, version: int) -> Mmproj:
    mmproj = Mmproj("resampler", text)
    mmproj.keys["clip.minicpmv_version"] = np.int32(version)
    mmproj.keys["clip.minicpmv_query_num"] = 16
    mmproj.positions(70 * 70)
    mmproj.vision_norm("v.post_ln")
    n = text.n_embd
    mmproj.normal("resampler.query", 16, n, scale=1.0)
    mmproj.normal("resampler.pos_embed_k", mmproj.n_patches, n, scale=1.0)
    mmproj.linear("resampler.kv", mmproj.n_embd, n)
    mmproj.linear("resampler.proj", n, n)
    for name in ("q", "k", "v", "out"):
        mmproj.linear(f"resampler.attn.{name}", n, n, bias=True)
    for name in ("q", "kv", "post"):
        mmproj.norm(f"resampler.ln_{name}", n, bias=True)
    return mmproj


def smolvlm(chat: Chat) -> Pair:
    """Every picture is enlarged to four slices, and an overview."""
    fences = ("<fake_token_around_image>", "<global-img>")
    rows = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    text = TextModel("llama", chat, *fences, *rows, plain=("ĊĊ",)).transformer()
    mmproj = Mmproj("idefics3", text)
    mmproj.set(**{"projector.scale_factor": 2, "preproc_image_size": 112})
    mmproj.positions()
    mmproj.vision_norm("v.post_ln")
    mmproj.linear("mm.model.fc", 4 * mmproj.n_embd, text.n_embd)
    return text, mmproj


def lfm_2_vl(chat: Chat) -> Pair:
    """Short convolutions around one block of attention. Slices are of 512 pixels always."""
    pictures = ("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
    text = TextModel("lfm2", chat, *pictures)
    kv = [0, text.n_head_kv, 0]
    text.set_in("attention", head_count_kv=kv)
    text.set_in("shortconv", l_cache=3)
    n = text.n_embd
    text.tensors["token_embd_norm.weight"] = text.tensors.pop("output_norm.weight")
    for block, attends in zip(text.blocks, kv, strict=True):
        if attends:
            text.attention(block, qk_norm=True)
        else:
            text.norm(f"{block}.attn_norm", n)
            text.normal(f"{block}.shortconv.conv.weight", n, 3, scale=3**-0.5)
            text.linear(f"{block}.shortconv.in_proj", n, 3 * n)
            text.linear(f"{block}.shortconv.out_proj", n, n)
        text.feed_forward(block)
    mmproj = Mmproj("lfm2", text, image_size=256, patch_size=16)
    mmproj.set(**{"projector.scale_factor": 2})
    mmproj.positions()
    mmproj.vision_norm("v.post_ln")
    wide = 4 * mmproj.n_embd
    mmproj.norm("mm.input_norm", wide, bias=True)
    mmproj.linear("mm.1", wide, wide, bias=True)
    mmproj.linear("mm.2", wide, text.n_embd, bias=True)
    return text, mmproj


def llama_4(chat: Chat) -> Pair:
    """Experts in every block; attention in chunks but for the fourth block."""
    text = TextModel("llama4", chat, "<|image_start|>", "<|image_end|>", n_layer=4)
    text.set(expert_count=4, expert_used_count=1, expert_feed_forward_length=text.n_ff)
    text.set(interleave_moe_layer_step=1)
    for block in text.blocks:
        text.attention(block)
        text.experts(block, 4)
    mmproj = Mmproj("llama4", text)
    mmproj.set(**{"projector.scale_factor": 2})
    patch = mmproj.tensors["v.patch_embd.weight"]
    mmproj.tensors["v.patch_embd.weight"] = patch.reshape(mmproj.n_embd, -1)
    mmproj.class_token()
    mmproj.vision_norm("v.pre_ln")
    mmproj.vision_norm("v.post_ln")
    wide = 4 * mmproj.n_embd
    mmproj.linear("mm.model.mlp.1", wide, wide)
    mmproj.linear("mm.model.mlp.2", wide, wide)
    mmproj.linear("mm.model.fc", wide, text.n_embd)
    return text, mmproj


def granite_vision(chat: Chat) -> Pair:
    """As version 3.2: the projector is shown what each of three blocks sees; slices are chosen from
    a list of sizes."""
    text = TextModel("granite", chat).transformer()
    text.set(embedding_scale=1.5, residual_scale=0.6, logit_scale=2.0)
    text.set_in("attention", scale=0.125)
    mmproj = Mmproj("mlp", text, n_layer=3)
    mmproj.set(feature_layer=[1, 2, 3], image_grid_pinpoints=[56, 112, 112, 56, 112, 112])
    mmproj.positions()
    mmproj.vision_norm("v.post_ln")
    mmproj.linear("mm.0", 3 * mmproj.n_embd, text.n_embd, bias=True)
    mmproj.linear("mm.2", text.n_embd, text.n_embd, bias=True)
    return text, mmproj
