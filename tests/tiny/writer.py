"""Writes GGUF files of random weights: text models with the shipped tokenizer, and mmproj files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGUFValueType, TokenType

from mars_gguf.demo_model import TEXT_MODEL

from .templates import Chat

Array = npt.NDArray[np.float32]
Value = str | bool | int | np.int32 | float | list[int] | list[float] | list[bool]


@cache
def tokenizer() -> dict[str, tuple[Any, GGUFValueType, GGUFValueType | None]]:
    """The tokenizer of the shipped model: key -> value, its type, the type of its items."""
    fields = gguf.GGUFReader(TEXT_MODEL).fields
    return {
        name: (field.contents(), field.types[0], field.types[1] if field.types[1:] else None)
        for name, field in fields.items()
        if name.startswith("tokenizer.") and name != "tokenizer.chat_template"
    }


class Random:
    """A GGUF file of metadata and random tensors, the same at every run."""

    def __init__(self, architecture: str, seed: int) -> None:
        self.architecture = architecture
        self.random = np.random.default_rng(seed)
        self.keys: dict[str, Value] = {}
        self.tensors: dict[str, Array] = {}

    def normal(self, name: str, *shape: int, scale: float) -> None:
        """A tensor of numpy ``shape`` (llama.cpp's, reversed)."""
        self.tensors[name] = (self.random.normal(size=shape) * scale).astype(np.float32)

    def ones(self, name: str, size: int) -> None:
        self.tensors[name] = np.ones(size, np.float32)

    def norm(self, name: str, size: int, bias: bool = False) -> None:
        """A norm that changes no scale."""
        self.ones(f"{name}.weight", size)
        if bias:
            self.normal(f"{name}.bias", size, scale=0.1)

    def linear(self, name: str, inputs: int, *outputs: int, bias: bool = False) -> None:
        """A map that keeps variance; several for ``outputs`` of several dimensions."""
        self.normal(f"{name}.weight", *outputs, inputs, scale=inputs**-0.5)
        if bias:
            self.normal(f"{name}.bias", *outputs, scale=0.1)

    def convolution(self, name: str, inputs: int, outputs: int, side: int) -> None:
        shape = (outputs, inputs, side, side)
        self.normal(name, *shape, scale=(inputs * side * side) ** -0.5)

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in self.keys.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, np.int32):
                writer.add_int32(key, int(value))
            elif isinstance(value, float):
                writer.add_float32(key, value)
            else:
                writer.add_array(key, value)
        self.add_more(writer)
        for name, tensor in self.tensors.items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def add_more(self, writer: gguf.GGUFWriter) -> None:
        """Add metadata of other types."""


class TextModel(Random):
    """A text model, with the vocabulary of the shipped one and the special tokens of its chat.

    ``specials`` are the tokens that mtmd puts around pictures, ``plain`` ordinary ones.
    """

    def __init__(
        self,
        architecture: str,
        chat: Chat,
        *specials: str,
        plain: tuple[str, ...] = (),
        n_layer: int = 3,
        n_embd: int = 64,
    ) -> None:
        super().__init__(architecture, seed=11)
        self.name = f"tiny {architecture}"
        self.chat, self.n_layer, self.n_embd = chat, n_layer, n_embd
        # Heads of 32: a quantized cache takes no smaller ones.
        self.n_head, self.n_head_kv, self.n_ff = 2, 1, 96
        self.head = n_embd // self.n_head
        known: list[str] = tokenizer()["tokenizer.ggml.tokens"][0]
        added = dict.fromkeys((chat.end, *chat.tokens, *specials))
        self.specials = [token for token in added if token not in known]
        self.plain = list(plain)
        self.tokens = [*known, *self.specials, *self.plain]
        self.set(
            vocab_size=len(self.tokens),
            context_length=4096,
            embedding_length=n_embd,
            block_count=n_layer,
            feed_forward_length=self.n_ff,
        )
        self.set_in("attention", head_count=self.n_head, head_count_kv=self.n_head_kv)
        self.set_in("attention", layer_norm_rms_epsilon=1e-5)
        self.normal("token_embd.weight", len(self.tokens), n_embd, scale=1.0)
        self.linear("output", n_embd, len(self.tokens))
        self.norm("output_norm", n_embd)

    @property
    def blocks(self) -> list[str]:
        return [f"blk.{layer}" for layer in range(self.n_layer)]

    def set(self, **keys: Value) -> None:
        """Set keys of the architecture."""
        self.keys |= {f"{self.architecture}.{key}": value for key, value in keys.items()}

    def set_in(self, group: str, **keys: Value) -> None:
        self.set(**{f"{group}.{key}": value for key, value in keys.items()})

    def transformer(self, *, qk_norm: bool = False, qkv_bias: bool = False) -> TextModel:
        """Blocks built as in llama, with norms of queries and keys, or biases, if wanted."""
        for block in self.blocks:
            self.attention(block, qk_norm=qk_norm, bias=qkv_bias)
            self.feed_forward(block)
        return self

    def attention(
        self, block: str, *, n_head_kv: int | None = None, qk_norm: bool = False, bias: bool = False
    ) -> None:
        n_kv = self.head * (n_head_kv or self.n_head_kv)
        n_q = self.head * self.n_head
        self.norm(f"{block}.attn_norm", self.n_embd)
        for name, size in (("q", n_q), ("k", n_kv), ("v", n_kv)):
            self.linear(f"{block}.attn_{name}", self.n_embd, size, bias=bias)
        self.linear(f"{block}.attn_output", n_q, self.n_embd)
        if qk_norm:
            self.qk_norm(block, self.head)

    def qk_norm(self, block: str, size: int) -> None:
        self.norm(f"{block}.attn_q_norm", size)
        self.norm(f"{block}.attn_k_norm", size)

    def feed_forward(self, block: str, norm: str = "ffn_norm") -> None:
        self.norm(f"{block}.{norm}", self.n_embd)
        for name in ("gate", "up"):
            self.linear(f"{block}.ffn_{name}", self.n_embd, self.n_ff)
        self.linear(f"{block}.ffn_down", self.n_ff, self.n_embd)

    def experts(
        self, block: str, count: int, *, norm: str = "ffn_norm", shared: bool = True
    ) -> None:
        """A mixture of experts, and a shared one."""
        self.norm(f"{block}.{norm}", self.n_embd)
        self.linear(f"{block}.ffn_gate_inp", self.n_embd, count)
        for suffix, shape in (("exps", (count,)), ("shexp", ()))[: 1 + shared]:
            for name in ("gate", "up"):
                self.linear(f"{block}.ffn_{name}_{suffix}", self.n_embd, *shape, self.n_ff)
            self.linear(f"{block}.ffn_down_{suffix}", self.n_ff, *shape, self.n_embd)

    def set_state_space(self, state: int, heads: int, groups: int) -> None:
        """Set what blocks of Mamba 2 have."""
        self.set_in("ssm", conv_kernel=4, inner_size=2 * self.n_embd, state_size=state)
        self.set_in("ssm", time_step_rank=heads, group_count=groups)

    def state_space(self, block: str, state: int, heads: int, groups: int) -> None:
        """The mixer of Mamba 2."""
        inner = 2 * self.n_embd
        channels = inner + 2 * groups * state
        self.norm(f"{block}.attn_norm", self.n_embd)
        self.linear(f"{block}.ssm_in", self.n_embd, inner + channels + heads)
        self.normal(f"{block}.ssm_conv1d.weight", channels, 4, scale=0.5)
        self.normal(f"{block}.ssm_conv1d.bias", channels, scale=0.1)
        self.ones(f"{block}.ssm_dt.bias", heads)
        self.tensors[f"{block}.ssm_a"] = -np.linspace(0.1, 1, heads, dtype=np.float32)[:, None]
        self.normal(f"{block}.ssm_d", heads, 1, scale=1.0)
        self.tensors[f"{block}.ssm_norm.weight"] = np.ones((groups, inner // groups), np.float32)
        self.linear(f"{block}.ssm_out", inner, self.n_embd)

    def add_more(self, writer: gguf.GGUFWriter) -> None:
        types = tokenizer()["tokenizer.ggml.token_type"][0]
        changed = {
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": [
                *types,
                *[TokenType.CONTROL] * len(self.specials),
                *[TokenType.NORMAL] * len(self.plain),
            ],
            "tokenizer.ggml.eos_token_id": self.tokens.index(self.chat.end),
        }
        for key, (value, kind, item) in tokenizer().items():
            writer.add_key_value(key, changed.get(key, value), kind, item)
        writer.add_name(self.name)
        writer.add_chat_template(self.chat.template)


class Mmproj(Random):
    """An mmproj: a vision transformer, to which a projector is to be added.

    ``rms``: norms without biases. ``gated``: feed-forward with a gate. ``fused``: one matrix for
    queries, keys and values.
    """

    def __init__(
        self,
        projector: str,
        text: TextModel,
        *,
        image_size: int = 56,
        patch_size: int = 14,
        n_layer: int = 2,
        activation: str = "gelu",
        rms: bool = False,
        gated: bool = False,
        fused: bool = False,
        attention_bias: bool = True,
    ) -> None:
        super().__init__("clip", seed=5)
        self.n_embd, self.n_ff, self.n_head = 32, 64, 2
        self.n_text, self.rms, self.n_layer = text.n_embd, rms, n_layer
        self.patch_size = patch_size
        self.n_patches = (image_size // patch_size) ** 2
        self.keys = {"clip.projector_type": projector, "clip.has_vision_encoder": True}
        if activation != "quick_gelu":
            self.keys[f"clip.use_{activation}"] = True
        self.set(
            image_size=image_size,
            patch_size=patch_size,
            embedding_length=self.n_embd,
            block_count=n_layer,
            feed_forward_length=self.n_ff,
            projection_dim=self.n_text,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        self.set(**{"attention.head_count": self.n_head, "attention.layer_norm_epsilon": 1e-6})
        self.convolution("v.patch_embd.weight", 3, self.n_embd, patch_size)
        for block in self.blocks:
            self.vision_norm(f"{block}.ln1")
            self.vision_norm(f"{block}.ln2")
            outputs = {"qkv": 3 * self.n_embd} if fused else dict.fromkeys("qkv", self.n_embd)
            for name, size in outputs.items():
                self.linear(f"{block}.attn_{name}", self.n_embd, size, bias=attention_bias)
            self.linear(f"{block}.attn_out", self.n_embd, self.n_embd, bias=attention_bias)
            for name in ("gate", "up")[not gated :]:
                self.linear(f"{block}.ffn_{name}", self.n_embd, self.n_ff, bias=not rms)
            self.linear(f"{block}.ffn_down", self.n_ff, self.n_embd, bias=not rms)

    @property
    def blocks(self) -> list[str]:
        return [f"v.blk.{layer}" for layer in range(self.n_layer)]

    def set(self, **keys: Value) -> None:
        self.keys |= {f"clip.vision.{key}": value for key, value in keys.items()}

    def vision_norm(self, name: str) -> None:
        self.norm(name, self.n_embd, bias=not self.rms)

    def positions(self, count: int | None = None) -> None:
        """Learned positions, one for each patch if not told otherwise."""
        shape = (count or self.n_patches, self.n_embd)
        self.normal("v.position_embd.weight", *shape, scale=0.3)

    def class_token(self) -> None:
        """A class token, and learned positions for it and the patches."""
        self.normal("v.class_embd", self.n_embd, scale=1.0)
        self.positions(self.n_patches + 1)

    def second_frame(self) -> None:
        """The other half of the patch embedding of models that take two frames at once."""
        self.convolution("v.patch_embd.weight.1", 3, self.n_embd, self.patch_size)


Pair = tuple[TextModel, Mmproj | None]
