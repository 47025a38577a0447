"""Tiny random transformers checkpoints in the shapes of real ones: text and image-text-to-text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

tokenizers = pytest.importorskip("tokenizers")
torch = pytest.importorskip("torch")
try:
    with suppress(ModuleNotFoundError):
        import torchvision
except RuntimeError:
    # PyPI's build for Linux needs CUDA; beside a torch without, its operators are missing. What
    # transformers takes of it is Python, which is imported once they are declared.
    TORCHVISION = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        TORCHVISION.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    import torchvision  # noqa: F401
transformers = pytest.importorskip("transformers")

BLOCKS, WIDTH = 4, 32
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "How do I bake bread?", "What is shown in this picture?", "Tell me about the sea and ships.",
    "Explain how a clock works, step by step.", "Which colour is the house on the hill?",
]  # fmt: skip
TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
# As many blocks of the same width as the language model, to be mistaken for them.
VISION = {
    "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
}  # fmt: skip
SIZE = {"height": 32, "width": 32}
SLICED: dict[str, Any] = {
    "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}, "do_image_splitting": True
}  # fmt: skip


def tokenizer(template: str | None = TEMPLATE, **special: str) -> Any:
    """Byte-level BPE with ChatML's tokens and the ``special`` ones, by their names."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special.values()]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS,
        tokenizers.trainers.BpeTrainer(
            special_tokens=added, initial_alphabet=alphabet, vocab_size=400
        ),
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens=special,
    )  # fmt: skip
    fast.chat_template = template
    return fast


def save(model: Any, processor: Any, folder: Path) -> str:
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def from_gguf(path: Path, folder: Path) -> str:
    """The weights of a GGUF, dequantized to float32, with its tokenizer."""
    loaded = {"gguf_file": path.name}
    transformers.utils.logging.disable_progress_bar()
    words = transformers.AutoTokenizer.from_pretrained(path.parent, **loaded)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, dtype=torch.float32, **loaded
    )
    # Its weights are plain float32 now, but transformers refuses to save what it calls quantized.
    model.hf_quantizer, model.is_quantized = None, False
    model.config.__dict__.pop("quantization_config", None)
    return save(model, words, folder)


def llama(folder: Path, template: str | None = TEMPLATE) -> str:
    torch.manual_seed(1)
    words = tokenizer(template)
    config = transformers.LlamaConfig(vocab_size=len(words), **TEXT)
    return save(transformers.LlamaForCausalLM(config), words, folder)


def llava(folder: Path) -> str:
    torch.manual_seed(2)
    words = tokenizer(image_token="<image>")
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=transformers.LlamaConfig(vocab_size=len(words), **TEXT),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full", vision_feature_layer=-1, image_seq_length=16,
    )  # fmt: skip
    processor = transformers.LlavaProcessor(
        image_processor=transformers.SiglipImageProcessor(size=SIZE), tokenizer=words,
        patch_size=8, vision_feature_select_strategy="full",
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )  # fmt: skip
    return save(transformers.LlavaForConditionalGeneration(config), processor, folder)


def qwen2_vl(folder: Path) -> str:
    torch.manual_seed(3)
    words = tokenizer(
        image_token="<|image_pad|>", video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>",
    )  # fmt: skip
    ids = {f"{n}_token_id": words.convert_tokens_to_ids(f"<|{n}_pad|>") for n in ("image", "video")}
    ids |= {
        f"vision_{n}_token_id": words.convert_tokens_to_ids(f"<|vision_{n}|>")
        for n in ("start", "end")
    }
    config = transformers.Qwen2VLConfig(
        text_config={
            **TEXT, "vocab_size": len(words),
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]
            },
        },
        vision_config={"depth": BLOCKS, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 4,
                       "mlp_ratio": 2, "patch_size": 8, "spatial_merge_size": 2},
        **ids,
    )  # fmt: skip
    processor = transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(
            patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=64 * 64
        ),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        tokenizer=words,
        chat_template=TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return save(transformers.Qwen2VLForConditionalGeneration(config), processor, folder)


def gemma3(folder: Path) -> str:
    torch.manual_seed(4)
    words = tokenizer(
        image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"
    )
    ids = words.convert_tokens_to_ids(["<image_soft_token>", "<start_of_image>", "<end_of_image>"])
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(
            vocab_size=len(words), sliding_window=16, query_pre_attn_scalar=8, **TEXT
        ),
        vision_config=transformers.SiglipVisionConfig(**VISION),
        mm_tokens_per_image=4, image_token_index=ids[0], boi_token_index=ids[1],
        eoi_token_index=ids[2],
    )  # fmt: skip
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size=SIZE), tokenizer=words,
        image_seq_length=4, chat_template=TEMPLATE.replace("IMAGE", "<start_of_image>"),
    )  # fmt: skip
    return save(transformers.Gemma3ForConditionalGeneration(config), processor, folder)


def idefics3(folder: Path) -> str:
    """Each picture becomes four slices and the whole of it."""
    torch.manual_seed(5)
    words = tokenizer(
        image_token="<image>", fake_token="<fake_token_around_image>",
        end_token="<end_of_utterance>", global_token="<global-img>",
    )  # fmt: skip
    config = transformers.Idefics3Config(
        text_config=transformers.LlamaConfig(vocab_size=len(words), **TEXT),
        vision_config=VISION, scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    processor = transformers.Idefics3Processor(
        image_processor=transformers.Idefics3ImageProcessor(**SLICED),
        tokenizer=words, image_seq_len=4, chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )  # fmt: skip
    return save(transformers.Idefics3ForConditionalGeneration(config), processor, folder)


def smolvlm(folder: Path) -> str:
    torch.manual_seed(7)
    words = tokenizer(
        image_token="<image>", fake_token="<fake_token_around_image>",
        end_token="<end_of_utterance>", global_token="<global-img>", video_token="<video>",
    )  # fmt: skip
    config = transformers.SmolVLMConfig(
        text_config=transformers.LlamaConfig(vocab_size=len(words), **TEXT),
        vision_config=VISION, scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    processor = transformers.SmolVLMProcessor(
        image_processor=transformers.SmolVLMImageProcessor(**SLICED),
        video_processor=transformers.SmolVLMVideoProcessor(), tokenizer=words, image_seq_len=4,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )  # fmt: skip
    return save(transformers.SmolVLMForConditionalGeneration(config), processor, folder)


def internvl(folder: Path) -> str:
    torch.manual_seed(6)
    words = tokenizer(
        context_image_token="<IMG_CONTEXT>", start_image_token="<img>", end_image_token="</img>",
        video_token="<video>",
    )  # fmt: skip
    config = transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(vocab_size=len(words), **TEXT),
        vision_config={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4,
    )  # fmt: skip
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=SIZE, crop_to_patches=False),
        video_processor=transformers.InternVLVideoProcessor(), tokenizer=words, image_seq_length=4,
        chat_template=TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )  # fmt: skip
    return save(transformers.InternVLForConditionalGeneration(config), processor, folder)


SEEING: dict[str, Callable[[Path], str]] = {
    "llava": llava, "qwen2_vl": qwen2_vl, "gemma3": gemma3, "idefics3": idefics3,
    "internvl": internvl, "smolvlm": smolvlm,
}  # fmt: skip


# Tests of every kind of checkpoint that is made here, and of one.
EVERY = pytest.mark.parametrize("checkpoint", ["llama", *SEEING], indirect=True)
LLAMA = pytest.mark.parametrize("checkpoint", ["llama"], indirect=True)
LLAVA = pytest.mark.parametrize("checkpoint", ["llava"], indirect=True)
