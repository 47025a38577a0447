"""The families: what each is made of, and how it is built.

Sizes are the least that llama.cpp takes, or little more; what a real model of the family has
(norms, biases, hybrid or windowed blocks, experts, slices) is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import gemma, others, qwen, sliced, templates, unsteerable
from .templates import Chat, Forms
from .writer import Pair


@dataclass(frozen=True)
class Family:
    """A tiny model of one family.

    ``sliced``: a picture of ``large_side`` is cut into slices (one of ``picture_side`` is not,
    except in SmolVLM). ``mrope``: a picture takes fewer positions than cells. ``hybrid``: there is
    recurrent memory, beside attention or alone, which cannot be rewound. ``non_causal``: the cells
    of a picture attend to one another, so that they must be in one micro-batch. ``experts``: there
    is a mixture of experts. ``text_only``: there is no mmproj. ``refused``: what is said of it when
    it is loaded to be steered; "" where it can be.
    """

    name: str
    build: Callable[[Chat], Pair]
    chat: Chat
    sliced: bool = False
    mrope: bool = False
    hybrid: bool = False
    non_causal: bool = False
    experts: bool = False
    text_only: bool = False
    refused: str = ""
    picture_side: int = 56
    large_side: int = 168

    @property
    def forms(self) -> Forms:
        """What the chat template takes as content."""
        return self.chat.forms

    def write(self, folder: Path) -> tuple[Path, Path | None]:
        """Write the model, and its mmproj if it has one, into ``folder``."""
        text, mmproj = self.build(self.chat)
        model = text.write(folder / "model.gguf")
        return model, mmproj and mmproj.write(folder / "mmproj.gguf")


def _by_name(*families: Family) -> dict[str, Family]:
    return {family.name: family for family in families}


FAMILIES = _by_name(
    Family("qwen2vl", qwen.qwen_2_vl, templates.QWEN_2_VL, mrope=True),
    Family("qwen2.5vl", qwen.qwen_2_5_vl, templates.QWEN_2_VL, mrope=True),
    Family("qwen3vl", qwen.qwen_3_vl, templates.QWEN_3_VL, mrope=True, picture_side=64),
    Family(
        "qwen3vlmoe", qwen.qwen_3_vl_moe, templates.QWEN_3_VL,
        mrope=True, experts=True, picture_side=64,
    ),
    Family(
        "qwen35", qwen.qwen_3_5, templates.QWEN_3_5, mrope=True, hybrid=True, picture_side=64
    ),
    Family(
        "qwen35moe", qwen.qwen_3_5_moe, templates.QWEN_3_5,
        mrope=True, hybrid=True, experts=True, picture_side=64,
    ),
    Family("gemma3", gemma.gemma_3, templates.GEMMA_3, non_causal=True),
    Family("gemma4", gemma.gemma_4, templates.GEMMA_4, non_causal=True),
    Family("gemma4-moe", gemma.gemma_4_moe, templates.GEMMA_4, non_causal=True, experts=True),
    Family("gemma4-e", gemma.gemma_4_e, templates.GEMMA_4, non_causal=True),
    Family("internvl-qwen2", sliced.internvl_qwen_2, templates.INTERNVL_QWEN_2, sliced=True),
    Family("internvl-qwen3", sliced.internvl_qwen_3, templates.INTERNVL_QWEN_3, sliced=True),
    Family("minicpmv", sliced.minicpm_v, templates.MINICPM_V, sliced=True),
    Family("minicpmv2", sliced.minicpm_v_2, templates.MINICPM, sliced=True),
    Family("smolvlm", sliced.smolvlm, templates.SMOLVLM, sliced=True),
    Family("granite-vision", sliced.granite_vision, templates.GRANITE_VISION, sliced=True),
    Family(
        "lfm2", sliced.lfm_2_vl, templates.LFM_2_VL, sliced=True, hybrid=True, large_side=768
    ),
    Family("llama4", sliced.llama_4, templates.LLAMA_4, sliced=True, experts=True),
    Family("llava-hf", others.llava, templates.LLAVA_HF),
    Family("llava-vicuna", others.llava, templates.VICUNA),
    Family("llava-phi3", others.llava_phi_3, templates.PHI_3),
    Family("phi4", others.phi_4, templates.PHI_4),
    Family("pixtral", others.pixtral, templates.PIXTRAL),
    Family("mistral3", others.mistral_3, templates.PIXTRAL),
    Family("glm4v", others.glm_4_v, templates.GLM_4_V, mrope=True),
    Family("glm4v-moe", others.glm_4_v_moe, templates.GLM_4_5_V, mrope=True, experts=True),
    Family("kimivl", others.kimi_vl, templates.KIMI_VL, experts=True),
    Family("mamba2", others.mamba_2, templates.MISTRAL, hybrid=True),
    Family("falcon-h1", others.falcon_h1, templates.FALCON_H1, hybrid=True, text_only=True),
    Family(
        "granite-hybrid", others.granite_hybrid, templates.GRANITE_4,
        hybrid=True, experts=True, text_only=True,
    ),
)  # fmt: skip

UNSTEERABLE = _by_name(
    Family("gemma3n", unsteerable.gemma_3n, templates.GEMMA_3, refused="3 dimensions"),
    Family("hy-v4", unsteerable.hy_v4, templates.FALCON_H1, refused="3 dimensions"),
    Family("plamo2", unsteerable.plamo_2, templates.FALCON_H1, hybrid=True, refused="not seen"),
    Family(
        "qwen4exp", unsteerable.qwen_4_exp, templates.QWEN_3_5,
        hybrid=True, experts=True, refused="not seen",
    ),
    Family("cogvlm", unsteerable.cogvlm, templates.VICUNA, refused="correlate"),
)  # fmt: skip
