"""Chat handlers with pictures: which one a model wants, how long a prompt is, and how a
conversation goes on without its pictures and earlier turns being evaluated again.

llama-cpp-python's handlers evaluate a whole conversation anew at every turn. Here one of them is
let loose on a stand-in for the model, which compares what it would evaluate with what the context
holds already, and passes on only what is new.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from llama_cpp import llama_chat_format as formats
from llama_cpp import mtmd_cpp
from llama_cpp.llama_chat_format import MTMDChatHandler
from PIL import Image

from mars_gguf import hooks
from mars_gguf.errors import ModelError
from mars_gguf.llama import SteeredLlama, load_mmproj
from mars_gguf.media.images import user_message
from mars_gguf.pictures import evaluate_picture, own_pictures

Messages = list[dict[str, Any]]


class TemplateChatHandler(MTMDChatHandler):
    """The chat template of the model's GGUF, also where it expects messages to be plain text.

    Templates of text-only models join strings; given the parts of a message with pictures they fail
    or write out a Python list. Such a message is then one text with the pictures' markers in it.
    """

    flat = False
    rendered = ""

    def _get_template_messages(self, messages: Any, media_marker: str) -> list[Any]:
        converted: list[Any] = super()._get_template_messages(messages, media_marker)
        if self.flat:
            for message in converted:
                if isinstance(message.get("content"), list):
                    texts = (part.get("text", "") for part in message["content"])
                    message["content"] = "\n".join(text for text in texts if text)
        return converted

    def _postprocess_template_text(self, text: str, image_urls: Any, media_marker: str) -> str:
        self.rendered = super()._postprocess_template_text(text, image_urls, media_marker)
        return self.rendered


HANDLERS: dict[str, Callable[..., Any]] = {
    "mtmd": TemplateChatHandler,
    "llava-1-5": formats.Llava15ChatHandler,
    "llava-1-6": formats.Llava16ChatHandler,
    "moondream": formats.MoondreamChatHandler,
    "nanollava": formats.NanoLlavaChatHandler,
    "obsidian": formats.ObsidianChatHandler,
    "llama-3-vision-alpha": formats.Llama3VisionAlphaChatHandler,
    "minicpm-v-2.6": formats.MiniCPMv26ChatHandler,
    "qwen2.5-vl": formats.Qwen25VLChatHandler,
}
"""By the names that llama-cpp-python's server knows them by."""


class ConversationHandler:
    """A chat handler of llama-cpp-python for conversations: what the context already holds of a
    prompt, pictures included, is not evaluated again.

    Replies equal those of the handler alone up to rounding: a prompt continued is decoded in other
    batches than a prompt from the start.
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler
        self.known: dict[int, bytes] = {}
        self._model: _Continuing | None = None
        own_pictures(handler, self._evaluate_picture)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.handler, name)

    def __call__(self, *, llama: Any, **kwargs: Any) -> Any:
        self._model = _Continuing(llama, self.known)
        try:
            return self.handler(llama=self._model, **kwargs)
        finally:
            self._model = None

    def _evaluate_picture(self, context: Any, _llama: Any, chunk: Any, *rest: Any) -> int:
        assert self._model is not None
        return self._model.evaluate_picture(context, chunk, rest[-1])


class _Continuing:
    """A model before which a handler lays a prompt from its beginning, chunk by chunk; ``n_tokens``
    is how much of it is there so far. What the context holds of it stays, the rest is evaluated."""

    def __init__(self, llama: SteeredLlama, known: dict[int, bytes]) -> None:
        self._llama, self._known = llama, known
        self._ctx = SimpleNamespace(ctx=llama._ctx.ctx, kv_cache_clear=lambda: None)
        self.n_tokens = 0
        self._kept = llama.n_reusable  # how much of the context the prompt may continue

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, name)

    @property
    def input_ids(self) -> Any:
        return self._llama.input_ids.copy()

    def reset(self) -> None:
        self.n_tokens = 0

    def _stop_keeping(self) -> None:
        """From here on the prompt is not what the context holds, or the context has ended."""
        if self._kept >= self.n_tokens:
            self._llama.rewind(self.n_tokens)
            self._kept = -1

    def eval(self, tokens: list[int]) -> None:
        held = self._llama.input_ids[self.n_tokens : max(self._kept, 0)].tolist()
        same = 0
        while same < min(len(tokens), len(held)) and tokens[same] == held[same]:
            same += 1
        self.n_tokens += same
        if same < len(tokens):
            self._stop_keeping()
            self._llama.eval(tokens[same:])
            self.n_tokens = self._llama.n_tokens

    def evaluate_picture(self, context: Any, chunk: Any, new_n_past: Any) -> int:
        start, identity = self.n_tokens, mtmd_cpp.mtmd_input_chunk_get_id(chunk)
        end = start + mtmd_cpp.mtmd_input_chunk_get_n_pos(chunk)
        past = new_n_past._obj
        span = set(self._llama.input_ids[start:end].tolist()) if end <= self._kept else set()
        if len(span) == 1 and identity and self._known.get(span.pop()) == identity:
            past.value = end
            return 0
        self._stop_keeping()
        llama = self._llama
        code = evaluate_picture(
            context, llama._ctx.ctx, chunk, start, 0, llama.n_batch, False, new_n_past
        )
        if code == 0:
            llama.n_tokens = past.value
            self._known[int(llama.input_ids[start])] = identity or b""
        return code

    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        self._stop_keeping()
        return self._llama.create_completion(*args, **kwargs)


class _Counted(Exception):
    """Carries the length of a prompt out of a handler that was about to generate."""


class _Counting:
    """A model before which a handler lays a prompt, to know its length. Nothing is evaluated."""

    def __init__(self, llama: SteeredLlama) -> None:
        self._llama, self.n_tokens = llama, 0
        self._ctx = SimpleNamespace(ctx=llama._ctx.ctx, kv_cache_clear=lambda: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, name)

    @property
    def input_ids(self) -> Any:
        return self._llama.input_ids.copy()

    def n_ctx(self) -> int:
        return 1 << 30

    def reset(self) -> None:
        self.n_tokens = 0

    def eval(self, tokens: list[int]) -> None:
        self.n_tokens += len(tokens)

    def evaluate_picture(self, _context: Any, _llama: Any, chunk: Any, *rest: Any) -> int:
        rest[-1]._obj.value = self.n_tokens + mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
        return 0

    def create_completion(self, prompt: list[int], **_kwargs: Any) -> Any:
        raise _Counted(self.n_tokens or len(prompt))


def prompt_tokens(llama: SteeredLlama, messages: Messages) -> int:
    """Cells that ``messages`` take in the context as a prompt. Encodes no picture.

    Raises ValueError if the chat template refuses the messages.
    """
    counting, handler = _Counting(llama), _innermost(llama.chat_handler)
    library = getattr(handler, "_mtmd_cpp", None)
    if library is not None:
        own_pictures(handler, counting.evaluate_picture)
    try:
        handler(llama=counting, messages=messages)
    except _Counted as counted:
        return int(counted.args[0])
    finally:
        if library is not None:
            handler._mtmd_cpp = library
    raise AssertionError("a chat handler returned without generating")


def _innermost(handler: Any) -> Any:
    while hasattr(handler, "handler"):
        handler = handler.handler
    return handler


def conversation_handler(mmproj: str, name: str | None = None) -> ConversationHandler:
    """The handler called ``name`` in `HANDLERS`, by default "mtmd", for an mmproj file.

    Raises ModelError if that is no GGUF.
    """
    hooks.require_gguf(mmproj)
    return ConversationHandler(HANDLERS[name or "mtmd"](mmproj, verbose=False))


def prepare(llama: SteeredLlama, handler: Any) -> None:
    """Load the mmproj of ``llama``'s handler, and see that pictures reach the prompt.

    Raises ModelError if the mmproj does not belong to the model, or if the chat template shows no
    pictures however it is asked.
    """
    load_mmproj(llama, handler)
    inner = _innermost(handler)
    if not isinstance(inner, TemplateChatHandler):
        return
    others = f"Choose a handler: --chat-handler {', '.join(n for n in HANDLERS if n != 'mtmd')}"
    if not llama.metadata.get("tokenizer.chat_template"):
        raise ModelError(
            f"{llama.model_path}: no chat template in the GGUF to show pictures with. {others}"
        )
    blank = user_message("text", [Image.new("RGB", (8, 8))])
    for flat in (False, True):
        inner.flat = flat
        try:
            prompt_tokens(llama, [blank])
        except Exception as error:  # a template is a program of its own
            failure: object = error
        else:
            if "'type'" not in inner.rendered:
                return
            failure = "it writes out the parts of a message"
    raise ModelError(
        f"{llama.model_path}: its chat template shows no pictures ({failure}). {others}"
    )
