"""The Qwen families: M-RoPE, deepstack, gated delta nets, experts."""

from __future__ import annotations

import numpy as np

from .templates import Chat
from .writer import Mmproj, Pair, TextModel


def qwen_2_vl(chat: Chat) -> Pair:
    text = TextModel("qwen2vl", chat).transformer(qkv_bias=True)
    text.set_in("rope", dimension_sections=[4, 6, 6, 0])
    mmproj = Mmproj("qwen2vl_merger", text, activation="quick_gelu")
    merger(mmproj)
    mmproj.vision_norm("v.post_ln")
    return text, mmproj


def qwen_2_5_vl(chat: Chat) -> Pair:
    """Windowed attention in the vision transformer: its second block alone sees everything."""
    text = TextModel("qwen2vl", chat).transformer(qkv_bias=True)
    text.set_in("rope", dimension_sections=[4, 6, 6, 0])
    mmproj = Mmproj("qwen2.5vl_merger", text, activation="silu", rms=True, gated=True)
    mmproj.set(n_wa_pattern=2)
    merger(mmproj)
    mmproj.vision_norm("v.post_ln")
    return text, mmproj


def qwen_3_vl(chat: Chat) -> Pair:
    """Deepstack: what two vision blocks see is added after the first two text blocks, too."""
    text = TextModel("qwen3vl", chat).transformer(qk_norm=True)
    return text, deepstack(text)


def qwen_3_vl_moe(chat: Chat) -> Pair:
    """The same with experts in every block."""
    text = TextModel("qwen3vlmoe", chat)
    text.set(expert_count=4, expert_used_count=2, expert_feed_forward_length=text.n_ff)
    for block in text.blocks:
        text.attention(block, qk_norm=True)
        text.experts(block, 4, shared=False)
    return text, deepstack(text)


def deepstack(text: TextModel) -> Mmproj:
    text.set_in("rope", dimension_sections=[6, 6, 4, 0])
    text.set(n_deepstack_layers=2)
    mmproj = qwen_3_vision(text, n_layer=3)
    wide = 4 * mmproj.n_embd
    for layer in range(2):
        mmproj.norm(f"v.deepstack.{layer}.norm", wide, bias=True)
        mmproj.linear(f"v.deepstack.{layer}.fc1", wide, wide, bias=True)
        mmproj.linear(f"v.deepstack.{layer}.fc2", wide, text.n_embd, bias=True)
    return mmproj


def qwen_3_5(chat: Chat) -> Pair:
    """Three gated delta nets for each block of attention, whose output is gated."""
    text = TextModel("qwen35", chat, n_layer=4)
    delta_nets(text)
    for block in text.blocks:
        text.feed_forward(block, "post_attention_norm")
    return text, qwen_3_vision(text, n_layer=2)


def qwen_3_5_moe(chat: Chat) -> Pair:
    """The same with experts in every block, and a shared one behind a gate."""
    text = TextModel("qwen35moe", chat, n_layer=4)
    text.set(expert_count=4, expert_used_count=2, expert_feed_forward_length=text.n_ff)
    text.set(expert_shared_feed_forward_length=text.n_ff)
    delta_nets(text)
    for block in text.blocks:
        text.experts(block, 4, norm="post_attention_norm")
        text.normal(f"{block}.ffn_gate_inp_shexp.weight", text.n_embd, scale=0.1)
    return text, qwen_3_vision(text, n_layer=2)


def delta_nets(text: TextModel) -> None:
    state, groups, values = 16, 2, 4
    text.set(full_attention_interval=4)
    text.set_in("rope", dimension_sections=[6, 6, 4, 0], dimension_count=text.head)
    text.set_in("attention", key_length=text.head, value_length=text.head)
    text.set_in("ssm", conv_kernel=4, inner_size=state * values, state_size=state)
    text.set_in("ssm", time_step_rank=values, group_count=groups)
    n, inner, channels = text.n_embd, state * values, state * (2 * groups + values)
    for block in text.blocks[:3]:
        text.norm(f"{block}.attn_norm", n)
        text.linear(f"{block}.attn_qkv", n, channels)
        text.linear(f"{block}.attn_gate", n, inner)
        text.normal(f"{block}.ssm_conv1d.weight", channels, 4, scale=0.5)
        text.ones(f"{block}.ssm_dt.bias", values)
        text.tensors[f"{block}.ssm_a"] = -np.linspace(0.1, 1, values, dtype=np.float32)
        for name in ("alpha", "beta"):
            text.linear(f"{block}.ssm_{name}", n, values)
        text.norm(f"{block}.ssm_norm", state)
        text.linear(f"{block}.ssm_out", inner, n)
    block = text.blocks[3]
    text.attention(block, qk_norm=True)
    text.linear(f"{block}.attn_q", n, 2 * text.head * text.n_head)


def qwen_3_vision(text: TextModel, n_layer: int) -> Mmproj:
    mmproj = Mmproj("qwen3vl_merger", text, patch_size=16, n_layer=n_layer, fused=True)
    mmproj.normal("v.patch_embd.bias", mmproj.n_embd, scale=0.1)
    mmproj.positions(36)
    mmproj.vision_norm("v.post_ln")
    merger(mmproj)
    return mmproj


def merger(mmproj: Mmproj) -> None:
    """Two frames to a patch, two by two patches to a token."""
    mmproj.second_frame()
    mmproj.linear("mm.0", 4 * mmproj.n_embd, 4 * mmproj.n_embd, bias=True)
    mmproj.linear("mm.2", 4 * mmproj.n_embd, mmproj.n_text, bias=True)
