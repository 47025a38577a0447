"""The parameters that ``Llama.__init__`` has no keyword for: the eval callback, the progress of
loading, and fields of a context.

``Llama.__init__`` assigns ``model_params`` and ``context_params`` before it uses them; data
descriptors of those names change what is assigned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError
from mars_gguf.runtime.compat import LlamaContext, suppress_stdout_stderr
from mars_gguf.runtime.tap import Tap


class Extras:
    """The further parameters of one model that is being loaded.

    tap: its eval callback. overrides: fields of ``llama_context_params``. progress: called with the
    share of the model that is loaded, 0 to 1.
    """

    def __init__(
        self,
        tap: Tap,
        overrides: Mapping[str, Any] | None,
        progress: Callable[[float], object] | None,
    ) -> None:
        self.tap, self.overrides, self._progress = tap, dict(overrides or {}), progress
        self._stopped: list[BaseException] = []
        self._callback: Any = lib.llama_progress_callback(self._report) if progress else None

    def add_to_context(self, params: Any) -> None:
        """Complete ``llama_context_params``."""
        self.tap.install(params)
        for name, value in self.overrides.items():
            setattr(params, name, value)

    def add_to_model(self, params: Any) -> None:
        """Complete ``llama_model_params``."""
        if self._callback is not None:
            params.progress_callback = self._callback

    def _report(self, share: float, _user_data: int) -> bool:
        try:
            assert self._progress is not None
            self._progress(share)
        except BaseException as error:  # Ctrl-C, too; it would be lost in ctypes
            self._stopped.append(error)
        return not self._stopped

    @contextlib.contextmanager
    def loading(self, model_path: str) -> Iterator[None]:
        """Context manager: raises what stopped the loading within, a ModelError for a file that
        llama.cpp does not load."""
        try:
            yield
        except ValueError as error:
            if self._stopped:
                raise self._stopped[0] from None
            raise ModelError(
                f"{model_path}: llama.cpp could not load this model ({error}). "
                "Is the file whole, and its architecture known to this llama.cpp? "
                "verbose=True shows what llama.cpp says."
            ) from error


class Completed:
    """Data descriptor: the attribute ``name`` of a Llama, completed by a method of its ``extras``
    when it is assigned."""

    def __init__(self, complete: Callable[[Extras, Any], None]) -> None:
        self._complete = complete

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __set__(self, llama: Any, params: Any) -> None:
        self._complete(llama.extras, params)
        llama.__dict__[self._name] = params

    def __get__(self, llama: Any, owner: type | None = None) -> Any:
        return llama.__dict__[self._name]


def renew_context(llama: Llama, **fields: int) -> None:
    """Put an empty context in the place of ``llama``'s, with other ``fields`` of its parameters.
    Raises ModelError if llama.cpp cannot make it."""
    if llama.lora_path:
        wanted = ", ".join(f"{name} {value} or more" for name, value in fields.items())
        raise ModelError(f"a LoRA adapter is lost where a context is renewed: give {wanted}")
    for name, value in fields.items():
        setattr(llama.context_params, name, value)
    llama._ctx.close()
    try:
        with suppress_stdout_stderr(disable=llama.verbose):
            context = LlamaContext(
                model=llama._model, params=llama.context_params, verbose=llama.verbose
            )
    except ValueError as error:
        wanted = ", ".join(f"{name} {value}" for name, value in fields.items())
        raise ModelError(
            f"llama.cpp could not make a context with {wanted}: most likely there is not "
            "enough memory. Take a smaller model, or less context."
        ) from error
    llama._ctx = llama._stack.enter_context(contextlib.closing(context))
    llama._n_ctx = llama.n_ctx()
    llama.n_tokens, llama.input_ids = 0, np.zeros(llama._n_ctx, np.intc)
