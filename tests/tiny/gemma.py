"""The Gemma families: windows, pictures whose cells see one another, per-layer embeddings."""

from __future__ import annotations

import numpy as np

from .templates import Chat
from .writer import Mmproj, Pair, TextModel


def gemma_3(chat: Chat) -> Pair:
    """Sliding windows in every block but the second; 16 tokens to a picture of any size."""
    text = TextModel("gemma3", chat).transformer(qk_norm=True)
    text.set_in("attention", sliding_window=64, sliding_window_pattern=2)
    post_norms(text)
    mmproj = Mmproj("gemma3", text, image_size=224)
    mmproj.positions()
    mmproj.vision_norm("v.post_ln")
    n = mmproj.n_embd
    mmproj.normal("mm.input_projection.weight", n, text.n_embd, scale=n**-0.5)
    mmproj.ones("mm.soft_emb_norm.weight", n)
    return text, mmproj


def gemma_4(chat: Chat) -> Pair:
    """As the large ones: the last block, of full attention, has wider heads, and its keys are its
    values. A picture takes 70 tokens or more."""
    text = gemma_4_text(chat, per_layer=0, head_count_kv=[2, 2, 1])
    for block in text.blocks[:2]:
        text.attention(block, n_head_kv=2, qk_norm=True)
    wide_attention(text, text.blocks[2], values=False)
    for block in text.blocks:
        text.feed_forward(block)
    return text, gemma_4_vision(text)


def gemma_4_moe(chat: Chat) -> Pair:
    """As 26B-A4B: beside the feed-forward of every block, experts with norms of their own."""
    text = gemma_4_text(chat, per_layer=0, head_count_kv=[2, 2, 1])
    text.set(expert_count=4, expert_used_count=2, expert_feed_forward_length=text.n_ff)
    n = text.n_embd
    for block in text.blocks[:2]:
        text.attention(block, n_head_kv=2, qk_norm=True)
    wide_attention(text, text.blocks[2], values=False)
    for block in text.blocks:
        text.experts(block, 4, shared=False)
        text.feed_forward(block)
        text.ones(f"{block}.ffn_gate_inp.scale", n)
        for name in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
            text.norm(f"{block}.{name}", n)
    return text, gemma_4_vision(text)


def gemma_4_e(chat: Chat) -> Pair:
    """As E2B and E4B: every block is given embeddings of its own of the tokens, and the last has no
    keys and values, but those of the block before that attends to all."""
    text = gemma_4_text(chat, per_layer=16, head_count_kv=[1, 1, 1, 1], n_layer=4)
    text.set_in("attention", shared_kv_layers=1, sliding_window_pattern=[True, True, False, False])
    n, each = text.n_embd, 16
    text.normal("per_layer_token_embd.weight", len(text.tokens), each * text.n_layer, scale=1.0)
    text.linear("per_layer_model_proj", n, each * text.n_layer)
    text.norm("per_layer_proj_norm", each)
    for block in text.blocks[:2]:
        text.attention(block, qk_norm=True)
    for block in text.blocks[2:]:
        wide_attention(text, block, values=True)
    for name in ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight"):
        del text.tensors[f"{text.blocks[3]}.{name}"]
    for block in text.blocks:
        text.feed_forward(block)
        text.linear(f"{block}.inp_gate", n, each)
        text.linear(f"{block}.proj", each, n)
        text.norm(f"{block}.post_norm", n)
    return text, gemma_4_vision(text)


def gemma_4_text(
    chat: Chat, *, per_layer: int, head_count_kv: list[int], n_layer: int = 3
) -> TextModel:
    text = TextModel("gemma4", chat, n_layer=n_layer)
    swa, full = text.head, 2 * text.head
    text.set(embedding_length_per_layer_input=per_layer, final_logit_softcapping=30.0)
    text.set_in("attention", sliding_window=64, sliding_window_pattern=[True, True, False])
    text.set_in("attention", head_count_kv=head_count_kv, key_length=full, value_length=full)
    text.set_in("attention", key_length_swa=swa, value_length_swa=swa)
    text.set_in("rope", freq_base=1e6, freq_base_swa=1e4)
    text.set_in("rope", dimension_count=full, dimension_count_swa=swa)
    turning = full // 8  # a quarter of each head turns with the position
    still = np.full(full // 2 - turning, 1e30, np.float32)
    text.tensors["rope_freqs.weight"] = np.concatenate([np.ones(turning, np.float32), still])
    post_norms(text)
    for block in text.blocks:
        text.ones(f"{block}.layer_output_scale.weight", 1)
    return text


def wide_attention(text: TextModel, block: str, *, values: bool) -> None:
    """Attention to everything, with heads of twice the width and one of keys."""
    n, full = text.n_embd, 2 * text.head
    text.norm(f"{block}.attn_norm", n)
    text.linear(f"{block}.attn_q", n, full * text.n_head)
    text.linear(f"{block}.attn_k", n, full)
    if values:
        text.linear(f"{block}.attn_v", n, full)
    text.linear(f"{block}.attn_output", full * text.n_head, n)
    text.qk_norm(block, full)


def gemma_4_vision(text: TextModel) -> Mmproj:
    mmproj = Mmproj(
        "gemma4v", text, image_size=96, patch_size=4, rms=True, gated=True, attention_bias=False
    )
    n = mmproj.n_embd
    mmproj.normal("v.position_embd.weight", 2, 1024, n, scale=0.3)
    for block in mmproj.blocks:
        for name in ("attn_q_norm", "attn_k_norm"):
            mmproj.norm(f"{block}.{name}", n // mmproj.n_head)
        for name in ("attn_post_norm", "ffn_post_norm"):
            mmproj.norm(f"{block}.{name}", n)
    mmproj.linear("mm.input_projection", n, text.n_embd)
    return mmproj


def post_norms(text: TextModel) -> None:
    for block in text.blocks:
        text.norm(f"{block}.post_attention_norm", text.n_embd)
        text.norm(f"{block}.post_ffw_norm", text.n_embd)
