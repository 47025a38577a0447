"""The demo model in torch: a Llama language model, a SigLIP-shaped vision tower, a LLaVA projector.

Parameters carry the names that transformers' ``LlavaForConditionalGeneration`` gives them, so a
checkpoint's state dict is a transformers checkpoint as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mars_gguf.demo_model.pictures import SIZE


@dataclass(frozen=True)
class TextShape:
    vocab: int = 1024
    d: int = 256
    feed_forward: int = 512
    blocks: int = 8
    heads: int = 4
    context: int = 1024
    rope_base: float = 10000.0
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class VisionShape:
    size: int = SIZE
    patch: int = 16
    d: int = 192
    feed_forward: int = 768
    blocks: int = 5
    heads: int = 3
    norm_eps: float = 1e-6

    @property
    def tokens(self) -> int:
        return (self.size // self.patch) ** 2


TEXT, VISION = TextShape(), VisionShape()


class RMSNorm(nn.Module):
    def __init__(self, d: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)
        return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Half-split pairs, transformers' order; llama.cpp's interleaved order is a row permutation.
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    # Written out: on a CPU, for sequences this short, it trains several times faster in bfloat16
    # than the fused kernel.
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    mixed = scores.softmax(-1).to(v.dtype) @ v
    return mixed.transpose(1, 2).flatten(2)


class TextAttention(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj = nn.Linear(shape.d, shape.d, bias=False)
        self.k_proj = nn.Linear(shape.d, shape.d, bias=False)
        self.v_proj = nn.Linear(shape.d, shape.d, bias=False)
        self.o_proj = nn.Linear(shape.d, shape.d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        out: Tensor = self.o_proj(_attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v, mask))
        return out


class TextFeedForward(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.d, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.d, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class TextBlock(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.d, shape.norm_eps)
        self.self_attn = TextAttention(shape)
        self.post_attention_layernorm = RMSNorm(shape.d, shape.norm_eps)
        self.mlp = TextFeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class LanguageModel(nn.Module):
    """Llama with tied embeddings; embeddings ``[batch, tokens, d]`` in, last states out."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: TextShape = TEXT) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab, shape.d)
        self.layers = nn.ModuleList(TextBlock(shape) for _ in range(shape.blocks))
        self.norm = RMSNorm(shape.d, shape.norm_eps)
        head = shape.d // shape.heads
        frequencies = shape.rope_base ** (-torch.arange(0, head, 2) / head)
        angles = torch.arange(shape.context)[:, None] * frequencies
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / (2 * shape.blocks) ** 0.5 if into_stream else 0.02)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        cos, sin = self.cos[:tokens], self.sin[:tokens]
        mask = x.new_full((tokens, tokens), -1e4).triu(1)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        out: Tensor = self.norm(x)
        return out

    def logits(self, states: Tensor) -> Tensor:
        out: Tensor = F.linear(states, self.embed_tokens.weight.to(states.dtype))
        return out


class VisionAttention(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj = nn.Linear(shape.d, shape.d)
        self.k_proj = nn.Linear(shape.d, shape.d)
        self.v_proj = nn.Linear(shape.d, shape.d)
        self.out_proj = nn.Linear(shape.d, shape.d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        out: Tensor = self.out_proj(_attend(q, k, v))
        return out


class VisionFeedForward(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.fc1 = nn.Linear(shape.d, shape.feed_forward)
        self.fc2 = nn.Linear(shape.feed_forward, shape.d)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class VisionBlock(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(shape.d, shape.norm_eps)
        self.self_attn = VisionAttention(shape)
        self.layer_norm2 = nn.LayerNorm(shape.d, shape.norm_eps)
        self.mlp = VisionFeedForward(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class VisionEmbeddings(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, shape.d, shape.patch, shape.patch)
        self.position_embedding = nn.Embedding(shape.tokens, shape.d)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patch_embedding(pictures).flatten(2).transpose(1, 2)
        out: Tensor = patches + self.position_embedding.weight.to(patches.dtype)
        return out


class VisionEncoder(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionBlock(shape) for _ in range(shape.blocks))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class VisionTower(nn.Module):
    """Pictures ``[n, 3, size, size]`` in [-1, 1] to patch features ``[n, tokens, d]``."""

    def __init__(self, shape: VisionShape = VISION) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(shape)
        self.encoder = VisionEncoder(shape)

    def forward(self, pictures: Tensor) -> Tensor:
        out: Tensor = self.encoder(self.embeddings(pictures))
        return out


class Projector(nn.Module):
    def __init__(self, vision: VisionShape = VISION, text: TextShape = TEXT) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision.d, text.d)
        self.linear_2 = nn.Linear(text.d, text.d)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.gelu(self.linear_1(features), approximate="tanh"))
        return out


class DemoModel(nn.Module):
    """The whole model. ``IMAGE`` (-1) in a row of ids stands for one token of a picture."""

    IMAGE = -1

    def __init__(self) -> None:
        super().__init__()
        self.language_model = LanguageModel()
        self.vision_tower = VisionTower()
        self.multi_modal_projector = Projector()

    def see(self, pictures: Tensor) -> Tensor:
        """Embeds pictures as ``[n, tokens, d]``, given as ``[n, 3, size, size]``."""
        out: Tensor = self.multi_modal_projector(self.vision_tower(pictures))
        return out

    def forward(self, ids: Tensor, seen: Tensor | None = None) -> Tensor:
        """Computes the last states ``[batch, tokens, d]``; ``seen`` are the pictures' embeddings
        (`see`), in the order their tokens appear in."""
        x = self.language_model.embed_tokens(ids.clamp(min=0))
        if seen is not None:
            x = x.to(seen.dtype).masked_scatter((ids == self.IMAGE)[..., None], seen)
        out: Tensor = self.language_model(x)
        return out
