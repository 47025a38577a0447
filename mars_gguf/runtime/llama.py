"""The runtime: a ``llama_cpp.Llama`` that steers the first token of every reply.

While a prompt is processed, the hidden state of its last token is read at one block. If the gate
stays closed nothing else happens, and the output is bit-identical to plain llama-cpp-python.
If it opens, the first token is sampled from a steered state; later tokens are not steered, and
what the steered token left in the KV cache is not carried into later prompts.

Of a model that thinks first, the token that counts may be the first of the answer
(``reasoning="answer"``): it is found as the reply goes on, and only then judged and steered.
"""

from __future__ import annotations

import atexit
import inspect
import threading
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal

from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.reasoning import Reasoning
from mars_gguf.runtime.assembly import (
    AnyVector,
    Extras,
    add_projector,
    load,
    policies_of,
    read_vectors,
    template_of,
    uses_plain_handler,
)
from mars_gguf.runtime.chunks import Chunk
from mars_gguf.runtime.context import Context
from mars_gguf.runtime.handlers import chat_handler_of
from mars_gguf.runtime.judging import Steering, Way
from mars_gguf.runtime.limits import (
    Vocabulary,
    require_allowed,
    require_arguments,
    require_sampling,
    require_tokens,
)
from mars_gguf.runtime.messages import Messages
from mars_gguf.runtime.mtmd import Projector, chunks_of
from mars_gguf.runtime.selftest import self_test
from mars_gguf.runtime.steerer import Steerer
from mars_gguf.runtime.tap import Tap
from mars_gguf.runtime.turns import ChatPrompt, locked
from mars_gguf.runtime.weights import fingerprint_of
from mars_gguf.steering import Policy

AT_EXIT = 5.0  # seconds
_GENERATE = inspect.signature(Llama.generate)
_COMPLETION = inspect.signature(Llama.create_completion)


class SteeredLlama(Llama):
    """A ``llama_cpp.Llama``, steered by a vector file. Takes every argument that ``Llama`` takes.

    vector: a file written by mars_gguf.convert, a Vector, or "auto" (`find_vector`); or several by
        name, as a mapping: the one that pushes most is followed. None: only to be measured.
    mmproj: multimodal projector (GGUF).
    template, chat_template_kwargs: how prompts are written (`formats.HANDLERS`; default: as the
        GGUF says), and variables for it; or a ``chat_handler`` of llama-cpp-python's.
    reasoning: whether the model thinks, and which token is judged: "off", "thought" or "answer";
        default: the vector's, else as the chat template suggests.
    way: "inline" (as "auto") adds to the state within the pass, for every kind of memory; "cvec"
        decodes the last prompt token again under llama.cpp's control vector.
    force: use a vector made for another quantization, other weights or chat template of the model.
    keep_turns: evaluate only what is new of a conversation with pictures. Replies then equal those
        from the start up to rounding, as they do with text in llama-cpp-python.
    allow_local_files: let messages show pictures by file:// addresses.
    parse_special: obey special tokens in what users and tools write; else they are text.
    context_overrides: fields of ``llama_context_params`` that ``Llama`` has no keyword for.
    rpc_servers: "HOST:PORT,...", machines that layers go to.
    progress: called with the share of the model that is loaded, 0 to 1.
    compiled: whether hidden states are read in C or in Python; default: in C where that was built.

    Raises VectorError for a vector that is damaged or made for another model, ModelError for a
    model or mmproj that does not load or cannot be read and steered. While generating, raises
    SteeringError rather than return an unsteered token.
    """

    on_batch: Callable[[], object] = staticmethod(lambda: None)  # called after every batch
    on_token: Callable[[], object] = staticmethod(lambda: None)  # and after every token
    projector: Projector | None = None
    chat_prompt: ChatPrompt = ChatPrompt()  # set by a chat handler

    def __init__(
        self,
        model_path: str,
        *,
        vector: AnyVector | Mapping[str, AnyVector] | None,
        mmproj: str | None = None,
        template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reasoning: Reasoning | None = None,
        way: Way | Literal["auto"] = "auto",
        force: bool = False,
        keep_turns: bool = False,
        allow_local_files: bool = False,
        parse_special: bool = False,
        context_overrides: dict[str, Any] | None = None,
        rpc_servers: str | None = None,
        progress: Callable[[float], object] | None = None,
        compiled: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.lock, self.closed, self.vocabulary = threading.RLock(), False, Vocabulary(self)
        written: dict[str, Any] = {"mmproj": mmproj, "template": template, "reasoning": reasoning}
        written["chat_template_kwargs"] = chat_template_kwargs
        self.vectors = read_vectors(vector, model_path, kwargs | written, force=force)
        self.uses_plain_handler = uses_plain_handler(kwargs, written, self.vectors)
        self._arguments = written | dict(
            vector=self.vectors or None, way=way, force=force, keep_turns=keep_turns,
            allow_local_files=allow_local_files, parse_special=parse_special,
            context_overrides=context_overrides, rpc_servers=rpc_servers,
            chat_handler=kwargs.get("chat_handler"), chat_format=kwargs.get("chat_format"),
        )  # fmt: skip
        self.tap = Tap(compiled=compiled)
        self.extras = Extras(self.tap, context_overrides, progress)
        self.context = Context(self, keep_turns=keep_turns)
        self.steerer = Steerer(self, self.context, self.tap, way)
        load(self, self.extras, model_path, rpc_servers, kwargs)
        self.n_layer: int = lib.llama_model_n_layer(self.model)
        atexit.register(_close, weakref.ref(self))
        if mmproj is not None:
            self.projector = add_projector(self, mmproj, allow_local_files=allow_local_files)
        self.template = template_of(self, written, self.vectors, parse_special=parse_special)
        mmproj = mmproj or getattr(kwargs.get("chat_handler"), "clip_model_path", None)
        self.fingerprint = fingerprint_of(self, self.template, mmproj)
        self.chat_handler: Any = chat_handler_of(self)
        if policies := policies_of(self.vectors, self.fingerprint, force=force):
            self.steerer.steer_by(*policies)
        self_test(self)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies that steer it."""
        return self.steerer.policies or ()

    def using(self, *policies: Policy) -> AbstractContextManager[None]:
        """Context manager: within it, replies are steered by ``policies`` instead; without any,
        not at all. Raises ValueError for two of one name."""
        return self.steerer.using(*policies)

    @property
    def last_steering(self) -> Steering | None:
        """The record of what steering did to the latest reply."""
        return self.steerer.turns.reply.steering

    reset = locked(Llama.reset)
    create_chat_completion = locked(Llama.create_chat_completion)

    @property
    def context_params(self) -> Any:
        """``llama_context_params``; Llama assigns them before it loads the model."""
        return self._context_params

    @context_params.setter
    def context_params(self, params: Any) -> None:
        self._context_params = params
        self.extras.add_to(self.model_params, params)

    @property
    def n_tokens(self) -> int:
        """Positions in the context; whoever sets it moves the end of the context."""
        return self.context.n_tokens

    @n_tokens.setter
    def n_tokens(self, end: int) -> None:
        self.steerer.move(end)

    def _init_sampler(self, *args: Any, grammar: Any = None, **kwargs: Any) -> Any:
        """As Llama's. Raises PromptError for what llama.cpp would end the process over."""
        require_sampling(self, grammar, **kwargs)
        sampler = super()._init_sampler(*args, grammar=grammar, **kwargs)
        return sampler if grammar is None else require_allowed(self, sampler)

    @locked
    def eval(self, tokens: Sequence[int]) -> None:
        """As ``Llama.eval``; reads the state of the last token unless they continue a reply."""
        self.steerer.eval(list(tokens))

    @locked
    def sample(self, *args: Any, **kwargs: Any) -> int:
        """As ``Llama.sample``; before the first token of a reply, steers. Raises SteeringError if
        the end of the context was not evaluated by `eval`: it cannot be judged."""
        draw = partial(super().sample, *args, **kwargs)
        return self.steerer.sample(draw, kwargs.get("idx"), grammar=bool(kwargs.get("grammar")))

    def generate(
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """As ``Llama.generate``; the first token it yields is steered if the gate opens. Ends where
        pictures have filled the context, which may be sooner than ``n_tokens`` tells. Raises
        PromptError for no tokens or arguments that llama.cpp would end the process over,
        SteeringError if something else has used the context since it yielded last."""
        reset = _GENERATE.bind(self, tokens, *args, **kwargs).arguments.get("reset", True)
        steps = super().generate(tokens, *args, **kwargs)
        yield from self.steerer.turns.generate(steps, list(tokens), reset=bool(reset))

    @locked
    def create_completion(self, prompt: str | list[int], *args: Any, **kwargs: Any) -> Any:
        """As ``Llama.create_completion``; a stream ends with a SteeringError if another prompt came
        in between. Raises PromptError for what llama.cpp would end the process over."""
        require_arguments(self, **_COMPLETION.bind(self, prompt, *args, **kwargs).arguments)
        return self.steerer.turns.hand_over(super().create_completion, prompt, *args, **kwargs)

    @locked
    def embed(self, input: str | list[str], *args: Any, **kwargs: Any) -> Any:
        """As ``Llama.embed``, which clears the context. Raises PromptError for a text of no tokens,
        over which llama-cpp-python writes beside its memory, or of more than a batch takes."""
        require_tokens(self, [input] if isinstance(input, str) else input)
        with self.context.emptied_on_error():
            return super().embed(input, *args, **kwargs)

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As ``Llama.tokenize``. Raises PromptError for a text that llama.cpp could not take."""
        self.vocabulary.require_tokenizable(text)
        return list(super().tokenize(text, add_bos, special))

    @locked
    def chunks(self, messages: Messages, **kwargs: Any) -> list[Chunk]:
        """The runs of text and pictures that the prompt of ``messages`` is made of. Raises
        PromptError for messages that do not become a prompt."""
        return chunks_of(self, self.projector, self.template.render(messages, **kwargs))

    @locked
    def load_state(self, state: Any) -> None:
        """Restore what ``save_state`` returned. Nothing can be sampled before the next `eval`: what
        the end of the restored context was is not known."""
        with self.context.emptied_on_error(), self.context.evaluating():
            super().load_state(state)
        self.steerer.moved()
        self.context.restored(state)

    @locked
    def save_state(self) -> Any:
        """Like ``Llama.save_state``, with what the pictures show. A plain ``Llama`` that loads it
        does not see what a steered token left in the cache; this one evaluates that anew."""
        return self.context.added_to(super().save_state())

    def __getstate__(self) -> dict[str, Any]:
        return dict(super().__getstate__(), **self._arguments)

    def close(self) -> None:
        """Free the model, if it was loaded."""
        with self.lock:
            self.closed = True
            if "_stack" in self.__dict__:
                super().close()

    def __del__(self) -> None:
        if "lock" in self.__dict__:  # else __init__ was not begun
            self.close()


def _close(reference: weakref.ref[SteeredLlama]) -> None:
    """Close a model before the interpreter takes apart what that needs."""
    llama = reference()
    if llama is not None:
        llama.steerer.turns.give_up()
        # A thread that is still within a batch keeps it: the process ends all the same.
        if llama.lock.acquire(timeout=AT_EXIT):
            llama.close()
