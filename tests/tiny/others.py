"""Families of plain transformers, of experts, and of state spaces."""

from __future__ import annotations

from .gemma import post_norms
from .templates import Chat
from .writer import Mmproj, Pair, TextModel


def llava(chat: Chat) -> Pair:
    """As version 1.5."""
    text = TextModel("llama", chat).transformer()
    return text, two_layers(text)


def llava_phi_3(chat: Chat) -> Pair:
    """Gate and up are one matrix, and so are queries, keys and values. llama.cpp knows Phi-3 by its
    name, wants these tokens, and drops the spaces after special ones."""
    text = TextModel("phi3", chat, "<s>", "</s>", "<unk>", "<|endoftext|>")
    fused_transformer(text)
    return text, two_layers(text)


def phi_4(chat: Chat) -> Pair:
    """As Phi-4-reasoning-vision: a token to a patch, pictures of any shape."""
    text = TextModel("phi3", chat)
    text.name = "tiny phi-4"
    fused_transformer(text)
    mmproj = Mmproj("phi4", text)
    mmproj.set(image_min_pixels=4 * 14 * 14, image_max_pixels=64 * 14 * 14)
    mmproj.positions()
    mmproj.vision_norm("v.post_ln")
    mmproj.linear("mm.0", mmproj.n_embd, text.n_embd, bias=True)
    mmproj.linear("mm.2", text.n_embd, text.n_embd, bias=True)
    return text, mmproj


def fused_transformer(text: TextModel) -> None:
    n, kv = text.n_embd, text.head * text.n_head_kv
    for block in text.blocks:
        text.norm(f"{block}.attn_norm", n)
        text.linear(f"{block}.attn_qkv", n, n + 2 * kv)
        text.linear(f"{block}.attn_output", n, n)
        text.norm(f"{block}.ffn_norm", n)
        text.linear(f"{block}.ffn_up", n, 2 * text.n_ff)
        text.linear(f"{block}.ffn_down", text.n_ff, n)
    text.set_in("rope", dimension_count=text.head)


def two_layers(text: TextModel) -> Mmproj:
    """CLIP, whose last block is not used, and a projector of two layers."""
    mmproj = Mmproj("mlp", text, n_layer=3, activation="quick_gelu")
    mmproj.class_token()
    mmproj.vision_norm("v.pre_ln")
    mmproj.linear("mm.0", mmproj.n_embd, text.n_embd, bias=True)
    mmproj.linear("mm.2", text.n_embd, text.n_embd, bias=True)
    return mmproj


def pixtral(chat: Chat) -> Pair:
    """As Pixtral 12B: a token to a patch, and one at the end of every row."""
    text = TextModel("llama", chat).transformer()
    return text, pixtral_vision(text)


def mistral_3(chat: Chat) -> Pair:
    """As Mistral Small 3.1: two by two patches to a token."""
    text = TextModel("mistral3", chat).transformer()
    mmproj = pixtral_vision(text)
    mmproj.set(spatial_merge_size=2)
    mmproj.norm("mm.input_norm", mmproj.n_embd)
    mmproj.linear("mm.patch_merger", 4 * mmproj.n_embd, mmproj.n_embd)
    return text, mmproj


def pixtral_vision(text: TextModel) -> Mmproj:
    mmproj = Mmproj("pixtral", text, activation="silu", rms=True, gated=True, attention_bias=False)
    mmproj.vision_norm("v.pre_ln")
    mmproj.linear("mm.1", mmproj.n_embd, text.n_embd, bias=True)
    mmproj.linear("mm.2", text.n_embd, text.n_embd, bias=True)
    mmproj.normal("v.token_embd.img_break", text.n_embd, scale=1.0)
    return mmproj


def glm_4_v(chat: Chat) -> Pair:
    """Half of each head turns with the position; gate and up are one matrix."""
    text = TextModel("glm4", chat)
    text.set_in("rope", dimension_count=text.head // 2, dimension_sections=[4, 2, 2, 0])
    for block in text.blocks:
        text.attention(block, bias=True)
        text.norm(f"{block}.ffn_norm", text.n_embd)
        text.linear(f"{block}.ffn_up", text.n_embd, 2 * text.n_ff)
        text.linear(f"{block}.ffn_down", text.n_ff, text.n_embd)
    post_norms(text)
    return text, glm_vision(text)


def glm_4_v_moe(chat: Chat) -> Pair:
    """As GLM-4.5V and 4.6V: experts, chosen by sigmoids, in every block but the first."""
    text = TextModel("glm4moe", chat)
    text.set_in("rope", dimension_count=text.head // 2, dimension_sections=[4, 2, 2, 0])
    text.set(expert_count=4, expert_used_count=2, expert_shared_count=1)
    text.set(expert_feed_forward_length=text.n_ff, leading_dense_block_count=1)
    text.set(expert_weights_norm=True, expert_weights_scale=1.0, expert_gating_func=2)
    for block in text.blocks:
        text.attention(block, bias=True)
    text.feed_forward(text.blocks[0], "post_attention_norm")
    for block in text.blocks[1:]:
        text.experts(block, 4, norm="post_attention_norm")
        text.normal(f"{block}.exp_probs_b.bias", 4, scale=0.1)
    return text, glm_vision(text)


def glm_vision(text: TextModel) -> Mmproj:
    mmproj = Mmproj(
        "glm4v", text, activation="silu", rms=True, gated=True, fused=True, attention_bias=False
    )
    n, out = mmproj.n_embd, text.n_embd
    mmproj.second_frame()
    mmproj.normal("v.patch_embd.bias", n, scale=0.1)
    mmproj.vision_norm("v.norm_embd")
    mmproj.positions()
    mmproj.vision_norm("v.post_ln")
    mmproj.convolution("mm.patch_merger.weight", n, out, 2)
    mmproj.normal("mm.patch_merger.bias", out, scale=0.1)
    mmproj.linear("mm.model.fc", out, out)
    mmproj.norm("mm.post_norm", out, bias=True)
    for name in ("gate", "up"):
        mmproj.linear(f"mm.{name}", out, text.n_ff)
    mmproj.linear("mm.down", text.n_ff, out)
    return mmproj


def kimi_vl(chat: Chat) -> Pair:
    """Latent attention; experts in every block but the first."""
    text = TextModel("deepseek2", chat)
    n, heads, latent, nope, rope, value = text.n_embd, text.n_head, 32, 16, 32, 16
    text.set(leading_dense_block_count=1, expert_feed_forward_length=text.n_ff)
    text.set(expert_count=4, expert_used_count=2, expert_shared_count=1)
    text.set(expert_weights_scale=1.5, expert_weights_norm=True, expert_gating_func=2)
    text.set_in("attention", head_count_kv=1, q_lora_rank=latent, kv_lora_rank=latent)
    text.set_in("attention", key_length=latent + rope, value_length=latent)
    text.set_in("attention", key_length_mla=nope + rope, value_length_mla=value)
    text.set_in("rope", dimension_count=rope)
    for block in text.blocks:
        text.norm(f"{block}.attn_norm", n)
        text.norm(f"{block}.attn_q_a_norm", latent)
        text.norm(f"{block}.attn_kv_a_norm", latent)
        text.linear(f"{block}.attn_q_a", n, latent)
        text.linear(f"{block}.attn_q_b", latent, heads * (nope + rope))
        text.linear(f"{block}.attn_kv_a_mqa", n, latent + rope)
        text.linear(f"{block}.attn_k_b", nope, heads, latent)
        text.linear(f"{block}.attn_v_b", latent, heads, value)
        text.linear(f"{block}.attn_output", heads * value, n)
    text.feed_forward(text.blocks[0])
    for block in text.blocks[1:]:
        text.experts(block, 4)
        text.normal(f"{block}.exp_probs_b.bias", 4, scale=0.1)
    mmproj = Mmproj("kimivl", text)
    mmproj.set(**{"projector.scale_factor": 2})
    mmproj.normal("v.patch_embd.bias", mmproj.n_embd, scale=0.1)
    mmproj.positions()
    mmproj.vision_norm("v.post_ln")
    wide = 4 * mmproj.n_embd
    mmproj.norm("mm.input_norm", mmproj.n_embd, bias=True)
    mmproj.linear("mm.1", wide, wide, bias=True)
    mmproj.linear("mm.2", wide, text.n_embd, bias=True)
    return text, mmproj


# State spaces -------------------------------------------------------------------------------------


def mamba_2(chat: Chat) -> Pair:
    """State spaces alone. No public model shows them pictures: the projector is a plain one."""
    text = TextModel("mamba2", chat)
    text.set(feed_forward_length=0)
    text.set_in("attention", head_count=0)
    del text.keys["mamba2.attention.head_count_kv"]
    text.set_state_space(state=16, heads=4, groups=1)
    for block in text.blocks:
        text.state_space(block, state=16, heads=4, groups=1)
    return text, two_layers(text)


def falcon_h1(chat: Chat) -> Pair:
    """A state space beside the attention of every block."""
    text = TextModel("falcon-h1", chat)
    text.set_state_space(state=16, heads=4, groups=1)
    for block in text.blocks:
        text.state_space(block, state=16, heads=4, groups=1)
        text.attention(block)
        text.feed_forward(block)
        text.tensors[f"{block}.ffn_norm"] = text.tensors.pop(f"{block}.ffn_norm.weight")
    return text, None


def granite_hybrid(chat: Chat) -> Pair:
    """State spaces around one block of attention, and experts with a shared one in each."""
    text = TextModel("granitehybrid", chat)
    text.set(embedding_scale=1.5, residual_scale=0.6, logit_scale=2.0)
    text.set(expert_count=4, expert_used_count=2, expert_shared_feed_forward_length=text.n_ff)
    kv = [0, text.n_head_kv, 0]
    text.set_in("attention", scale=0.125, head_count_kv=kv)
    text.set_state_space(state=16, heads=4, groups=1)
    for block, attends in zip(text.blocks, kv, strict=True):
        if attends:
            text.attention(block)
        else:
            text.state_space(block, state=16, heads=4, groups=1)
        text.experts(block, 4)
    return text, None
