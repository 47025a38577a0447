"""Families whose graph gives nothing to hold, as their real models do.

They are written with a text model alone: it is refused before any picture is shown.
"""

from __future__ import annotations

import numpy as np

from .gemma import post_norms
from .qwen import delta_nets
from .templates import Chat
from .writer import Mmproj, Pair, TextModel


def gemma_3n(chat: Chat) -> Pair:
    """Four residual streams, side by side in a third dimension. llama.cpp has their number and the
    sizes of what is made of them in its code."""
    text = TextModel("gemma3n", chat, n_layer=6)
    n, streams, laurel, each = text.n_embd, 4, 64, 256
    text.set_in("attention", sliding_window=64, sliding_window_pattern=2)
    text.transformer(qk_norm=True)
    post_norms(text)
    text.normal("altup_proj.weight", streams - 1, n, n, scale=n**-0.5)
    text.normal("altup_unembd_proj.weight", streams - 1, n, n, scale=n**-0.5)
    text.normal("per_layer_token_embd.weight", len(text.tokens), each * text.n_layer, scale=1.0)
    text.linear("per_layer_model_proj", n, each * text.n_layer)
    text.norm("per_layer_proj_norm", each)
    for block in text.blocks:
        text.linear(f"{block}.inp_gate", n, each)
        text.linear(f"{block}.proj", each, n)
        text.linear(f"{block}.altup_correct_coef", streams, streams)
        text.linear(f"{block}.altup_predict_coef", streams, streams * streams)
        text.linear(f"{block}.altup_router", n, streams)
        text.linear(f"{block}.laurel_l", n, laurel)
        text.linear(f"{block}.laurel_r", laurel, n)
        for name in ("post_norm", "altup_correct_scale", "altup_router_norm", "laurel_post_norm"):
            text.norm(f"{block}.{name}", n)
    return text, None


def plamo_2(chat: Chat) -> Pair:
    """State spaces around one block of attention; no node of the graph is called l_out."""
    text = TextModel("plamo2", chat)
    n, inner, state, heads, steps = text.n_embd, 128, 16, 4, 64
    kv = [0, text.n_head_kv, 0]
    text.set_in("attention", head_count_kv=kv, key_length=text.head, value_length=text.head)
    text.set_in("ssm", conv_kernel=4, inner_size=inner, state_size=state)
    text.set_in("ssm", time_step_rank=heads, group_count=0)
    for block, attends in zip(text.blocks, kv, strict=True):
        text.norm(f"{block}.attn_norm", n)
        if attends:
            q, k = text.n_head * text.head, text.n_head_kv * text.head
            text.linear(f"{block}.attn_qkv", n, q + 2 * k)
            for name, count in (("q", text.n_head), ("k", text.n_head_kv)):
                ones = np.ones((count, text.head), np.float32)
                text.tensors[f"{block}.attn_{name}_norm.weight"] = ones
            text.linear(f"{block}.attn_output", q, n)
        else:
            text.linear(f"{block}.ssm_in", n, 2 * inner)
            text.normal(f"{block}.ssm_conv1d.weight", inner, 4, scale=0.5)
            text.linear(f"{block}.ssm_x", inner, steps + 2 * state)
            text.linear(f"{block}.ssm_dt", steps, heads)
            text.ones(f"{block}.ssm_dt.bias", heads)
            text.tensors[f"{block}.ssm_a"] = -np.linspace(0.1, 1, heads, dtype=np.float32)
            text.ones(f"{block}.ssm_d", heads)
            text.linear(f"{block}.ssm_out", inner, n)
            for name, size in (("dt", steps), ("b", state), ("c", state)):
                text.ones(f"{block}.ssm_{name}_norm", size)
        text.ones(f"{block}.post_attention_norm", n)
        text.norm(f"{block}.ffn_norm", n)
        text.linear(f"{block}.ffn_up", n, 2 * text.n_ff)
        text.linear(f"{block}.ffn_down", text.n_ff, n)
        text.ones(f"{block}.post_ffw_norm", n)
    return text, None


def hy_v4(chat: Chat) -> Pair:
    """Latent attention with sinks and a gate, on two residual streams that no control vector is
    added to."""
    text = TextModel("hy_v4", chat)
    n, heads, latent, nope, rope, value = text.n_embd, text.n_head, 32, 16, 16, 16
    streams = 2
    text.set_in("attention", head_count_kv=1, q_lora_rank=latent, kv_lora_rank=latent)
    text.set_in("attention", key_length=latent + rope, value_length=latent)
    text.set_in("attention", key_length_mla=nope + rope, value_length_mla=value)
    text.set_in("rope", dimension_count=rope)
    text.set_in("hyper_connection", count=streams, epsilon=1e-6, magnitude=1.0)
    text.set(leading_dense_block_count=text.n_layer, expert_feed_forward_length=text.n_ff)
    text.set(expert_count=4, expert_used_count=2, expert_shared_count=1)
    text.linear("output_hc_fn", streams * n, streams)
    text.normal("output_hc_base.weight", streams, scale=1.0)
    text.ones("output_hc_scale.weight", 1)
    for block in text.blocks:
        text.norm(f"{block}.attn_norm", n)
        text.normal(f"{block}.attn_sinks.weight", heads, scale=0.1)
        text.norm(f"{block}.attn_q_a_norm", latent)
        text.norm(f"{block}.attn_kv_a_norm", latent)
        text.linear(f"{block}.attn_q_a", n, latent)
        text.linear(f"{block}.attn_q_b", latent, heads * (nope + rope))
        text.linear(f"{block}.attn_kv_a_mqa", n, latent + rope)
        text.linear(f"{block}.attn_k_b", nope, heads, latent)
        text.linear(f"{block}.attn_v_b", latent, heads, value)
        text.linear(f"{block}.attn_output", heads * value, n)
        text.linear(f"{block}.attn_gate", n, heads * value)
        for name in ("attn", "ffn"):
            text.linear(f"{block}.hc_{name}_fn", streams * n, 2 * streams)
            text.normal(f"{block}.hc_{name}_base.weight", 2 * streams, scale=1.0)
            text.ones(f"{block}.hc_{name}_scale.weight", 2)
        text.feed_forward(block)
    return text, None


def qwen_4_exp(chat: Chat) -> Pair:
    """Gated delta nets and attention to chosen tokens, on two residual streams; no node of the
    graph is called l_out."""
    text = TextModel("qwen4exp", chat, n_layer=4)
    n, streams, rank, head = text.n_embd, 2, 16, 32
    text.set(expert_count=4, expert_used_count=2, expert_feed_forward_length=text.n_ff)
    text.set(expert_shared_feed_forward_length=text.n_ff)
    text.set_in("hyper_connection", count=streams, low_rank=rank)
    text.set(**{"attention.indexer.head_count": 2, "attention.indexer.key_length": head})
    text.set(**{"attention.indexer.top_k": 16})
    delta_nets(text)
    text.linear("output_hc_down", streams * n, rank)
    text.linear("output_hc_up", rank, streams * n)
    text.ones("output_hc_norm.weight", streams * n)
    for block in text.blocks:
        text.experts(block, 4, norm="post_attention_norm")
        del text.tensors[f"{block}.attn_norm.weight"]
        del text.tensors[f"{block}.post_attention_norm.weight"]
        text.normal(f"{block}.ffn_gate_inp_shexp.weight", n, scale=0.1)
        for name in ("attn", "ffn"):
            text.ones(f"{block}.hc_{name}_norm.weight", streams * n)
            text.linear(f"{block}.hc_{name}_down", streams * n, rank)
            text.linear(f"{block}.hc_{name}_up", rank, streams * n)
            text.linear(f"{block}.hc_{name}_inject", streams * n, streams)
    block = text.blocks[3]
    text.linear(f"{block}.indexer.q_proj", n, 2 * head)
    text.linear(f"{block}.indexer.k_proj", n, head)
    for name in ("q_norm", "k_norm"):
        text.norm(f"{block}.indexer.{name}", head)
    del text.tensors["output_norm.weight"]
    return text, None


def cogvlm(chat: Chat) -> Pair:
    """Experts for pictures and for text in every block."""
    text = TextModel("cogvlm", chat)
    n = text.n_embd
    text.set_in("attention", head_count_kv=text.n_head)
    for block in text.blocks:
        text.norm(f"{block}.attn_norm", n)
        text.feed_forward(block)
        for name in ("attn", "vis_attn"):
            text.linear(f"{block}.{name}_qkv", n, 3 * n)
            text.linear(f"{block}.{name}_output", n, n)
        for name in ("gate", "up"):
            text.linear(f"{block}.vis_{name}", n, text.n_ff)
        text.linear(f"{block}.vis_down", text.n_ff, n)
    mmproj = Mmproj("cogvlm", text, fused=True)
    mmproj.class_token()
    mmproj.linear("mm.model.fc", mmproj.n_embd, n)
    mmproj.norm("mm.post_fc_norm", n, bias=True)
    for name in ("up", "gate"):
        mmproj.linear(f"mm.{name}", n, text.n_ff)
    mmproj.linear("mm.down", text.n_ff, n)
    for name in ("v.boi", "v.eoi"):
        mmproj.normal(name, n, scale=1.0)
    return text, mmproj
