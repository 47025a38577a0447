"""The ways of writing prompts, by the names that commands, recipes and llama-cpp-python's server
know them by."""

from __future__ import annotations

# llama-cpp-python's own prompt formats for pictures: the class in llama_cpp.llama_chat_format.
PICTURE_FORMATS = {
    "llava-1-5": "Llava15ChatHandler",
    "llava-1-6": "Llava16ChatHandler",
    "moondream": "MoondreamChatHandler",
    "nanollava": "NanoLlavaChatHandler",
    "obsidian": "ObsidianChatHandler",
    "llama-3-vision-alpha": "Llama3VisionAlphaChatHandler",
    "minicpm-v-2.6": "MiniCPMv26ChatHandler",
    "qwen2.5-vl": "Qwen25VLChatHandler",
}
HANDLERS = ("mtmd", "chatml", *PICTURE_FORMATS)  # mtmd: the model's own chat template
