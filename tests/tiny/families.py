"""The families: how each builds its text model, its vision transformer and its projector.

Sizes are the least that llama.cpp takes, or little more; what a real model of the family has
(norms, biases, hybrid or windowed blocks, slices) is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import templates
from .templates import Chat, Forms
from .writer import Mmproj, TextModel

Pair = tuple[TextModel, Mmproj]


@dataclass(frozen=True)
class Family:
    """A tiny model of one family.

    ``sliced``: a picture of ``large_side`` is cut into slices (one of ``picture_side`` is not,
    except in SmolVLM). ``mrope``: a picture takes fewer positions than cells. ``hybrid``: there is
    recurrent memory, which cannot be rewound. ``non_causal``: the cells of a picture attend to one
    another, so that they must be in one micro-batch.
    """

    name: str
    build: Callable[[Chat], Pair]
    chat: Chat
    sliced: bool = False
    mrope: bool = False
    hybrid: bool = False
    non_causal: bool = False
    picture_side: int = 56
    large_side: int = 168

    @property
    def forms(self) -> Forms:
        """What the chat template takes as content."""
        return self.chat.forms

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write the model and its mmproj into ``folder``."""
        text, mmproj = self.build(self.chat)
        return text.write(folder / "model.gguf"), mmproj.write(folder / "mmproj.gguf")


# Qwen ---------------------------------------------------------------------------------------------


def qwen_2_vl(chat: Chat) -> Pair:
    text = TextModel("qwen2vl", chat).transformer(qkv_bias=True)
    text.set_in("rope", dimension_sections=[2, 3, 3, 0])
    mmproj = Mmproj("qwen2vl_merger", text, activation="quick_gelu")
    merger(mmproj)
    mmproj.vision_norm("v.post_ln")
    return text, mmproj


def qwen_2_5_vl(chat: Chat) -> Pair:
    """Windowed attention in the vision transformer: its second block alone sees everything."""
    text = TextModel("qwen2vl", chat).transformer(qkv_bias=True)
    text.set_in("rope", dimension_sections=[2, 3, 3, 0])
    mmproj = Mmproj("qwen2.5vl_merger", text, activation="silu", rms=True, gated=True)
    mmproj.set(n_wa_pattern=2)
    merger(mmproj)
    mmproj.vision_norm("v.post_ln")
    return text, mmproj


def qwen_3_vl(chat: Chat) -> Pair:
    """Deepstack: what two vision blocks see is added after the first two text blocks, too."""
    text = TextModel("qwen3vl", chat).transformer(qk_norm=True)
    text.set_in("rope", dimension_sections=[3, 3, 2, 0])
    text.set(n_deepstack_layers=2)
    mmproj = qwen_3_vision(text, n_layer=3)
    wide = 4 * mmproj.n_embd
    for layer in range(2):
        mmproj.norm(f"v.deepstack.{layer}.norm", wide, bias=True)
        mmproj.linear(f"v.deepstack.{layer}.fc1", wide, wide, bias=True)
        mmproj.linear(f"v.deepstack.{layer}.fc2", wide, text.n_embd, bias=True)
    return text, mmproj


def qwen_3_5(chat: Chat) -> Pair:
    """Three gated delta nets for each block of attention, whose output is gated."""
    text = TextModel("qwen35", chat, n_layer=4)
    state, groups, values = 16, 2, 4
    text.set(full_attention_interval=4)
    text.set_in("rope", dimension_sections=[3, 3, 2, 0], dimension_count=text.head)
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
        text.feed_forward(block, "post_attention_norm")
    block = text.blocks[3]
    text.attention(block, qk_norm=True)
    text.linear(f"{block}.attn_q", n, 2 * n)
    text.feed_forward(block, "post_attention_norm")
    return text, qwen_3_vision(text, n_layer=2)


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


# Gemma --------------------------------------------------------------------------------------------


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
    text = TextModel("gemma4", chat)
    swa, full = text.head, 2 * text.head
    text.set(embedding_length_per_layer_input=0, final_logit_softcapping=30.0)
    text.set_in("attention", sliding_window=64, sliding_window_pattern=[True, True, False])
    text.set_in("attention", head_count_kv=[2, 2, 1], key_length=full, value_length=full)
    text.set_in("attention", key_length_swa=swa, value_length_swa=swa)
    text.set_in("rope", freq_base=1e6, freq_base_swa=1e4)
    text.set_in("rope", dimension_count=full, dimension_count_swa=swa)
    for block in text.blocks[:2]:
        text.attention(block, qk_norm=True)
        text.feed_forward(block)
    n, block = text.n_embd, text.blocks[2]
    text.norm(f"{block}.attn_norm", n)
    text.linear(f"{block}.attn_q", n, full * text.n_head)
    text.linear(f"{block}.attn_k", n, full)
    text.linear(f"{block}.attn_output", full * text.n_head, n)
    text.qk_norm(block, full)
    text.feed_forward(block)
    turning = full // 8  # a quarter of each head turns with the position
    still = np.full(full // 2 - turning, 1e30, np.float32)
    text.tensors["rope_freqs.weight"] = np.concatenate([np.ones(turning, np.float32), still])
    post_norms(text)
    for block in text.blocks:
        text.ones(f"{block}.layer_output_scale.weight", 1)
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
    return text, mmproj


def post_norms(text: TextModel) -> None:
    for block in text.blocks:
        text.norm(f"{block}.post_attention_norm", text.n_embd)
        text.norm(f"{block}.post_ffw_norm", text.n_embd)


# Slices -------------------------------------------------------------------------------------------


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
    slices = ("<image>", "</image>", "<slice>", "</slice>")
    text = TextModel("qwen2", chat, *slices, n_embd=128)
    text.transformer(qkv_bias=True)
    mmproj = Mmproj("resampler", text)
    mmproj.keys["clip.minicpmv_version"] = np.int32(3)
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
    return text, mmproj


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


# Others -------------------------------------------------------------------------------------------


def llava(chat: Chat) -> Pair:
    """As version 1.5: the last block of the vision transformer is not used."""
    text = TextModel("llama", chat).transformer()
    mmproj = Mmproj("mlp", text, n_layer=3, activation="quick_gelu")
    mmproj.class_token()
    mmproj.vision_norm("v.pre_ln")
    mmproj.linear("mm.0", mmproj.n_embd, text.n_embd, bias=True)
    mmproj.linear("mm.2", text.n_embd, text.n_embd, bias=True)
    return text, mmproj


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
    text.set_in("rope", dimension_count=text.head // 2, dimension_sections=[2, 1, 1, 0])
    for block in text.blocks:
        text.attention(block, bias=True)
        text.norm(f"{block}.ffn_norm", text.n_embd)
        text.linear(f"{block}.ffn_up", text.n_embd, 2 * text.n_ff)
        text.linear(f"{block}.ffn_down", text.n_ff, text.n_embd)
    post_norms(text)
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
    return text, mmproj


def kimi_vl(chat: Chat) -> Pair:
    """Latent attention; experts in every block but the first."""
    text = TextModel("deepseek2", chat)
    n, heads, latent, nope, rope, value = text.n_embd, text.n_head, 32, 16, 16, 16
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


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("qwen2vl", qwen_2_vl, templates.QWEN_2_VL, mrope=True),
        Family("qwen2.5vl", qwen_2_5_vl, templates.QWEN_2_VL, mrope=True),
        Family("qwen3vl", qwen_3_vl, templates.QWEN_3_VL, mrope=True, picture_side=64),
        Family("qwen35", qwen_3_5, templates.QWEN_3_5, mrope=True, hybrid=True, picture_side=64),
        Family("gemma3", gemma_3, templates.GEMMA_3, non_causal=True),
        Family("gemma4", gemma_4, templates.GEMMA_4, non_causal=True),
        Family("internvl-qwen2", internvl_qwen_2, templates.INTERNVL_QWEN_2, sliced=True),
        Family("internvl-qwen3", internvl_qwen_3, templates.INTERNVL_QWEN_3, sliced=True),
        Family("minicpmv", minicpm_v, templates.MINICPM_V, sliced=True),
        Family("smolvlm", smolvlm, templates.SMOLVLM, sliced=True),
        Family("llava-hf", llava, templates.LLAVA_HF),
        Family("llava-vicuna", llava, templates.VICUNA),
        Family("pixtral", pixtral, templates.PIXTRAL),
        Family("mistral3", mistral_3, templates.PIXTRAL),
        Family("lfm2", lfm_2_vl, templates.LFM_2_VL, sliced=True, hybrid=True, large_side=768),
        Family("llama4", llama_4, templates.LLAMA_4, sliced=True),
        Family("glm4v", glm_4_v, templates.GLM_4_V, mrope=True),
        Family("kimivl", kimi_vl, templates.KIMI_VL),
    )
}
