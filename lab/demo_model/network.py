"""The demo model as transformers has it: a Llama, a SigLIP tower without its last norm, and LLaVA's
projector, in a `LlavaForConditionalGeneration`."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from lab.demo_model.data import END, IMAGE_TOKEN, PATCH, PATCHES, SPECIAL, STOP, VOCABULARY
from mars_gguf.demo_model.pictures import SIZE

PARTS = ("language_model", "vision_tower", "multi_modal_projector")
BLOCKS = 8
_END, _STOP, _IMAGE = (SPECIAL.index(token) for token in (END, STOP, IMAGE_TOKEN))

TEXT = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=BLOCKS,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=1024,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    tie_word_embeddings=True,
    bos_token_id=_END,
    eos_token_id=_STOP,
    pad_token_id=_END,
)
VISION = SiglipVisionConfig(
    hidden_size=192,
    intermediate_size=768,
    num_hidden_layers=5,
    num_attention_heads=3,
    image_size=SIZE,
    patch_size=PATCH,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
    vision_use_head=False,
)


def new_model() -> LlavaForConditionalGeneration:
    """Makes the model with the weights that training begins with, drawn by torch's generator."""
    config = LlavaConfig(
        vision_config=VISION,
        text_config=TEXT,
        image_token_index=_IMAGE,
        image_seq_length=PATCHES,
        projector_hidden_act="gelu_pytorch_tanh",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        # Written out: on a CPU, for sequences this short, it trains several times faster in
        # bfloat16 than the fused kernel.
        attn_implementation="eager",
    )
    model = LlavaForConditionalGeneration(config)
    for name, p in model.model.language_model.named_parameters():
        if p.dim() == 2:
            into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(p, std=0.02 / (2 * BLOCKS) ** 0.5 if into_stream else 0.02)
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()
    nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=0.02)
    return model


def features(model: LlavaForConditionalGeneration, pictures: Tensor) -> Tensor:
    """Computes patch features ``[n, PATCHES, 192]`` of pictures ``[n, 3, SIZE, SIZE]`` in
    [-1, 1]."""
    seen = model.model.vision_tower(pictures, output_hidden_states=True).hidden_states
    return seen[-1]


def see(model: LlavaForConditionalGeneration, pictures: Tensor) -> Tensor:
    """Embeds pictures as ``[n, PATCHES, 256]``."""
    return model.model.multi_modal_projector(features(model, pictures))


def last_states(
    model: LlavaForConditionalGeneration, ids: Tensor, seen: Tensor | None = None
) -> Tensor:
    """Computes the last states ``[batch, tokens, 256]``; ``seen`` are the pictures' embeddings
    (`see`), in the order their tokens appear in."""
    x = model.get_input_embeddings()(ids)
    if seen is not None:
        x = x.to(seen.dtype).masked_scatter((ids == _IMAGE)[..., None], seen)
    return model.model.language_model(inputs_embeds=x, use_cache=False).last_hidden_state
