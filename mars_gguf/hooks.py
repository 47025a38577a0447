"""Into llama.cpp by ctypes: read and change the residual stream during a decode, and set its
control vector.

The residual stream after block l (0-based), control vector included, is the graph node
``l_out-<l>``, float32 [n_embd, n_rows] (src/models/*.cpp). The scheduler offers every node to the
context's eval callback, first with ask=True, then, where that returned True, computed
(ggml/src/ggml-backend.cpp, ggml_backend_sched_compute_splits).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what the module signal wraps
import atexit
import contextlib
import ctypes
import re
import signal
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import Llama, mtmd_cpp
from llama_cpp import llama_cpp as lib
from llama_cpp._logger import llama_log_callback

from mars_gguf.batch import Batch
from mars_gguf.errors import ModelError, SteeringError

Rows = npt.NDArray[np.float32]

# Between two prompts the processor's caches hold the model: on the way to a first token, the lines
# of Python that are passed count, not how often. ``signal.signal`` is much of it around this one.
set_handler = _signal.signal
SIGINT = int(signal.SIGINT)


def _ggml() -> Any:
    """The library that holds ggml's tensor accessors: reachable through libllama, except on
    Windows, where it must be named."""
    try:
        library: Any = lib._lib
        library["ggml_backend_tensor_get"]
    except AttributeError:
        folder = Path(llama_cpp.__file__).parent / "lib"
        library = ctypes.CDLL(str(next(folder.glob("*ggml-base.*"))))
    # To let go of the interpreter's lock takes longer than these functions, but for the two that
    # may wait for a device.
    waiting = {name: library[f"ggml_backend_tensor_{name}"] for name in ("get", "set")}
    library = ctypes.PyDLL(library._name, handle=library._handle)
    for name, function in waiting.items():
        setattr(library, f"ggml_backend_tensor_{name}", function)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("ggml_get_name", ctypes.c_char_p, [pointer]),
        ("ggml_get_data", pointer, [pointer]),
        ("ggml_is_empty", ctypes.c_bool, [pointer]),
        ("ggml_nelements", ctypes.c_int64, [pointer]),
        ("ggml_nrows", ctypes.c_int64, [pointer]),
        ("ggml_n_dims", ctypes.c_int, [pointer]),
        ("ggml_element_size", size, [pointer]),
        ("ggml_is_contiguous", ctypes.c_bool, [pointer]),
        ("ggml_backend_tensor_get", None, [pointer, pointer, size, size]),
        ("ggml_backend_tensor_set", None, [pointer, pointer, size, size]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


ggml = _ggml()
ggml_name_at = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(
    ctypes.cast(ggml.ggml_get_name, ctypes.c_void_p).value or 0
)


# Where a tensor's name lies, if the struct is laid out as is known (ggml/include/ggml.h, struct
# ggml_tensor), and all memory as words, to look at it there: to ask ggml would take most of the
# time that is spent on each of the hundreds of nodes in a decode.
NAME = 256
_memory = (ctypes.c_uint64 * (2**59 if ctypes.sizeof(ctypes.c_void_p) == 8 else 0)).from_address(0)


def _laid_out_as_known(tensor: int) -> bool:
    # Some systems put a tag into the top bits of addresses.
    return tensor < 8 * len(_memory) and ggml_name_at(tensor) == tensor + NAME


class State:
    """Memory for one hidden state of ``n_embd`` values, zeros at first: to find some anew at every
    first token would take longer than to read the state."""

    def __init__(self, n_embd: int) -> None:
        self.values: Rows = np.zeros(n_embd, np.float32)
        self.size = self.values.nbytes
        self.address = self.values.ctypes.data


class LayerOutput:
    """One computed node ``l_out-<layer>``: ``n_rows`` hidden states of ``n_embd`` float32 each.

    Valid only inside the visit it is handed to. Works for tensors on any device. An access out of
    range would abort the process in ggml, so it raises IndexError here.
    """

    def __init__(self, tensor: int, layer: int, n_embd: int) -> None:
        self.tensor, self.layer, self.n_embd = tensor, layer, n_embd
        self.n_rows: int = ggml.ggml_nrows(tensor)
        if ggml.ggml_n_dims(tensor) > 2 or not _holds_floats(tensor, self.n_rows * n_embd):
            raise ModelError(
                f"l_out-{layer} has {ggml.ggml_nelements(tensor)} values in {self.n_rows} rows and "
                f"{ggml.ggml_n_dims(tensor)} dimensions, expected float32 rows of {n_embd}: "
                "this architecture's residual stream cannot be steered."
            )

    def read(self, start: int = 0, stop: int | None = None) -> Rows:
        """Hidden states of rows ``start`` to ``stop`` (exclusive; default: all), [n, n_embd]."""
        stop = self.n_rows if stop is None else stop
        if not 0 <= start <= stop <= self.n_rows:
            raise IndexError(f"rows {start} to {stop} of {self.n_rows}")
        size = (stop - start) * self.n_embd
        rows = (ctypes.c_float * size)()
        if size:
            ggml.ggml_backend_tensor_get(self.tensor, rows, start * 4 * self.n_embd, 4 * size)
        return np.frombuffer(memoryview(rows), np.float32).reshape(-1, self.n_embd)

    def read_into(self, state: State, row: int) -> Rows:
        """The hidden state of one row, [n_embd], in ``state``."""
        self._require_row(state, row)
        ggml.ggml_backend_tensor_get(self.tensor, state.address, row * state.size, state.size)
        return state.values

    def write_from(self, state: State, row: int) -> None:
        """Replace the hidden state of one row by ``state``, for all later nodes of this decode."""
        self._require_row(state, row)
        ggml.ggml_backend_tensor_set(self.tensor, state.address, row * state.size, state.size)

    def _require_row(self, state: State, row: int) -> None:
        if not 0 <= row < self.n_rows or state.size != 4 * self.n_embd:
            raise IndexError(
                f"row {row} of {self.n_rows}, a state of {4 * self.n_embd} bytes in {state.size}"
            )

    def write(self, start: int, rows: Rows) -> None:
        """Replace the hidden states from row ``start`` on by ``rows`` [n, n_embd]; all later
        nodes of this decode see them."""
        rows = np.ascontiguousarray(rows, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.n_embd:
            raise IndexError(f"rows of shape {rows.shape}, expected [n, {self.n_embd}]")
        if not 0 <= start <= start + len(rows) <= self.n_rows:
            raise IndexError(f"rows {start} to {start + len(rows)} of {self.n_rows}")
        if rows.size:
            ggml.ggml_backend_tensor_set(
                self.tensor, rows.ctypes.data, start * 4 * self.n_embd, rows.nbytes
            )


class ControlVector:
    """llama.cpp's control vector of one context: a vector that is added to the output of one block
    for every token.

    For each vector that is set or cleared, llama.cpp builds its scheduler anew before the next
    decode (7 to 22 ms). So the one that was set last stays in the graph: ``silence`` makes it zero,
    and another for the same block is written over it, once ``find`` has seen its tensor.
    """

    def __init__(self, context: Any, n_layer: int, n_embd: int) -> None:
        self.context, self.n_layer, self.n_embd = context, n_layer, n_embd
        self._zero, self._vector = State(n_embd), State(n_embd)
        self._layer: int | None = None
        self._tensor: int | None = None

    def set(self, layer: int, vector: Rows) -> None:
        """Add ``vector`` [n_embd] to the output of block ``layer`` for every token from now on.

        llama.cpp wants the whole buffer, [n_layer - 1, n_embd] from block 1 on: blocks that are not
        sent keep what was set before (src/llama-adapter.cpp).
        """
        if not 1 <= layer < self.n_layer or vector.shape != (self.n_embd,):
            raise ModelError(
                f"control vector of {vector.shape} values for block {layer}, expected "
                f"{self.n_embd} values for a block from 1 to {self.n_layer - 1}"
            )
        self._vector.values[:] = vector
        if layer == self._layer and self._tensor is not None:
            self._write(self._vector)
            return
        buffer = np.zeros((self.n_layer - 1, self.n_embd), np.float32)
        buffer[layer - 1] = vector
        self._layer, self._tensor = layer, None
        data = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._call(data, buffer.size, self.n_embd, layer, layer)

    def find(self, output: LayerOutput) -> None:
        """Find the vector's tensor: the second operand of the sum that ``output`` is, if that can
        be told. To be called in a visit."""
        if output.layer != self._layer or self._tensor is not None:
            return
        tensor = _second_operand(output.tensor)
        if tensor is None or not _holds_floats(tensor, self.n_embd):
            return
        if b"#" in ggml.ggml_get_name(tensor):  # a copy that the scheduler makes for another device
            return
        held = State(self.n_embd)
        ggml.ggml_backend_tensor_get(tensor, held.address, 0, held.size)
        if np.array_equal(held.values, self._vector.values):
            self._tensor = tensor

    def silence(self) -> None:
        """Add zero, until another vector is set."""
        if self._tensor is not None:
            self._write(self._zero)
        else:
            self.clear()

    def clear(self) -> None:
        """Add nothing any more."""
        self._layer = self._tensor = None
        self._call(None, 0, 0, 0, 0)

    def _write(self, vector: State) -> None:
        lib.llama_synchronize(self.context)  # a decode may still be under way on a GPU
        ggml.ggml_backend_tensor_set(self._tensor, vector.address, 0, vector.size)

    def _call(self, *arguments: Any) -> None:
        code = lib.llama_set_adapter_cvec(self.context, *arguments)
        if code != 0:
            raise SteeringError(f"llama_set_adapter_cvec returned {code}")


def _holds_floats(tensor: int, n: int) -> bool:
    """Whether this is ``n`` float32 in a row."""
    return bool(
        ggml.ggml_element_size(tensor) == 4
        and ggml.ggml_nelements(tensor) == n
        and ggml.ggml_is_contiguous(tensor)
    )


def _second_operand(tensor: int) -> int | None:
    """The address of ``src[1]`` of a node (ggml/include/ggml.h, struct ggml_tensor); None if it has
    none, or if the struct is not laid out as is known."""
    if not _laid_out_as_known(tensor):
        return None
    if ctypes.c_void_p.from_address(tensor + 248).value != ggml.ggml_get_data(tensor):
        return None
    return ctypes.c_void_p.from_address(tensor + 160).value


Visit = Callable[[LayerOutput], None]


class interrupts_held:
    """Context manager: hold Ctrl-C back until the block ends. In a callback the exception would be
    lost in ctypes, and what the callback then returns would silently drop the rest of the graph."""

    def __enter__(self) -> None:
        self._interrupted = False
        try:
            self._handler = set_handler(SIGINT, self._hold)
        except ValueError:  # in another thread than the main one, which Ctrl-C does not reach
            self._handler = None
            self._holds = False
        else:
            self._holds = True

    def __exit__(self, _kind: object, _error: BaseException | None, _trace: object) -> None:
        if not self._holds:
            return
        set_handler(SIGINT, self._handler or signal.default_int_handler)
        if self._interrupted:
            signal.raise_signal(SIGINT)

    def _hold(self, _number: int, _frame: object) -> None:
        self._interrupted = True


def _scheduler_functions() -> tuple[Any, Any] | None:
    """llama.cpp's way from a context to its scheduler, and ggml's to set the scheduler's eval
    callback; None where the first, which is C++ and no official interface, has another name."""
    try:
        scheduler, set_callback = (
            lib._lib["_ZNK13llama_context9get_schedEv"],
            lib._lib["ggml_backend_sched_set_eval_callback"],
        )
    except AttributeError:
        return None
    scheduler.restype, scheduler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    set_callback.restype, set_callback.argtypes = None, [ctypes.c_void_p] * 3
    return scheduler, set_callback


_scheduler = _scheduler_functions()


# A function of ggml's that can stand in for the callback within a decode, where nothing is to be
# visited: it says no of every node, but of those without elements, of which it does no harm.
_never = ctypes.cast(ggml.ggml_is_empty, ctypes.c_void_p)


class Tap:
    """The eval callback of one context: calls ``visit`` with the outputs of chosen blocks.

    Outside ``visiting`` it does nothing, ``rest`` takes it off, and where llama.cpp puts it back it
    gives way at the first node: to be asked about every one costs some percent of a token's time.
    """

    def __init__(self) -> None:
        self.context: int | None = None  # llama_context *
        self.rests = False  # whether the callback is off, as far as is known
        self._layers: list[int] = []
        self._wanted: dict[bytes, int] = {}
        self._names: dict[bytes, int] = {}  # those of _wanted, as long as they are to be visited
        self._name_of = ggml.ggml_get_name
        self._beginnings: set[int] = set()  # of the names in _wanted, the first eight bytes
        self._peeks = False  # whether names lie where they can be looked at
        self._visit: Visit | None = None
        self._n_embd = 0
        self._error: BaseException | None = None
        self.callback = lib.ggml_backend_sched_eval_callback(self._on_node)
        self._pointer = ctypes.cast(self.callback, ctypes.c_void_p)

    def _on_node(self, tensor: int, ask: bool, _user_data: int) -> bool:
        names = self._names
        if not names:
            self.rests = False
            self._install(_never)
            return not ask
        if ask:  # of hundreds of nodes in a decode
            if self._peeks and _memory[(tensor + NAME) >> 3] not in self._beginnings:
                return False
            return self._name_of(tensor) in names
        # An exception would be lost in ctypes, and False would silently drop the rest of the
        # graph: keep the first one for after the decode.
        try:
            assert self._visit is not None
            self._peeks = self._peeks or _laid_out_as_known(tensor)
            self._visit(LayerOutput(tensor, names[self._name_of(tensor)], self._n_embd))
        except BaseException as error:
            self._error = error
            self.done()
        return True

    def done(self) -> None:
        """Visit nothing more in this ``visiting``: later nodes then cost next to nothing."""
        self._names = {}
        self._install(_never)

    def rest(self) -> bool:
        """Take the callback off until the next ``visiting``; whether that was possible. llama.cpp
        puts it back whenever it builds a graph anew (src/llama-context.cpp, process_ubatch), which
        shows in ``rests``: call it again then."""
        self.rests = self._install(None)
        return self.rests

    def _install(self, callback: Any) -> bool:
        if _scheduler is None or self.context is None:
            return False
        find, set_callback = _scheduler
        set_callback(find(self.context), callback, None)
        return True

    def visiting(self, layers: Sequence[int], n_embd: int, visit: Visit) -> _Visiting:
        """Context manager: during decodes in the block, call ``visit`` for each of ``layers``, once
        an ubatch.

        What a visit raises is raised again when the block ends: a ModelError as itself, anything
        else as a SteeringError.
        """
        return _Visiting(self, layers, n_embd, visit)


class _Visiting(interrupts_held):
    """The block of `Tap.visiting`."""

    def __init__(self, tap: Tap, layers: Sequence[int], n_embd: int, visit: Visit) -> None:
        self._tap, self._layers, self._n_embd, self._visit = tap, layers, n_embd, visit

    def __enter__(self) -> None:
        tap, layers = self._tap, self._layers
        if layers != tap._layers:
            tap._layers = list(layers)
            tap._wanted = {f"l_out-{layer}".encode(): layer for layer in layers}
            # None is shorter, with the zero that ends it.
            words = (name.ljust(8, b"\0")[:8] for name in tap._wanted)
            tap._beginnings = {int.from_bytes(word, sys.byteorder) for word in words}
        tap._names, tap._visit, tap._n_embd = tap._wanted, self._visit, self._n_embd
        tap._error, tap.rests = None, False
        tap._install(tap._pointer)
        super().__enter__()

    def __exit__(self, kind: object, failed: BaseException | None, trace: object) -> None:
        tap = self._tap
        try:
            super().__exit__(kind, failed, trace)
        except BaseException as error:
            failed = error
            raise
        finally:
            tap._names, tap._visit = {}, None
            seen, tap._error = tap._error, None
            if isinstance(seen, (ModelError, KeyboardInterrupt)):
                raise seen
            if seen is not None:
                raise SteeringError(f"steering failed during a decode: {seen!r}") from (
                    seen if failed is None else failed
                )


class _ContextParams:
    """Data descriptor: adds the eval callback to the context parameters that ``Llama.__init__``
    assigns, for which it has no keyword."""

    def __set__(self, llama: HookedLlama, params: Any) -> None:
        params.cb_eval = llama.tap.callback
        for name, value in llama.context_overrides.items():
            setattr(params, name, value)
        llama.__dict__["context_params"] = params

    def __get__(self, llama: HookedLlama, owner: type | None = None) -> Any:
        return llama.__dict__["context_params"]


class _ModelParams:
    """Data descriptor: adds the progress callback to the model parameters, likewise."""

    def __set__(self, llama: HookedLlama, params: Any) -> None:
        if llama.on_load is not None:
            params.progress_callback = llama.on_load
        llama.__dict__["model_params"] = params

    def __get__(self, llama: HookedLlama, owner: type | None = None) -> Any:
        return llama.__dict__["model_params"]


class HookedLlama(Llama):
    """A ``Llama`` whose residual stream can be read and changed.

    Takes every argument of ``llama_cpp.Llama``, and ``context_overrides``: fields of
    ``llama_context_params`` that it has no keyword for, and ``progress``: called with the share
    of the model that is loaded, 0 to 1. ``n_layer`` is the number of blocks; their indices are 0 to
    n_layer - 1. Raises ModelError for a file that llama.cpp does not load.
    """

    n_tokens: Any
    _batch: Any
    context_params: Any = _ContextParams()
    model_params: Any = _ModelParams()

    def __init__(
        self,
        model_path: str,
        *,
        context_overrides: dict[str, Any] | None = None,
        progress: Callable[[float], object] | None = None,
        **kwargs: Any,
    ) -> None:
        self.tap = Tap()
        self.context_overrides = context_overrides or {}
        self.on_load: Any = None
        stopped: list[BaseException] = []
        if progress is not None:

            def report(share: float, _user_data: int) -> bool:
                try:
                    progress(share)
                except BaseException as error:  # Ctrl-C, too; it would be lost in ctypes
                    stopped.append(error)
                return not stopped

            self.on_load = lib.llama_progress_callback(report)
        require_gguf(model_path)
        if kwargs.get("n_ctx"):
            # llama.cpp pads the context to a multiple of 256, llama-cpp-python's buffers are not.
            kwargs["n_ctx"] = -(-kwargs["n_ctx"] // 256) * 256
        try:
            super().__init__(model_path, **kwargs)
        except ValueError as error:
            if stopped:
                raise stopped[0] from None
            raise ModelError(
                f"{model_path}: llama.cpp could not load this model ({error}). "
                "Is the file whole, and its architecture known to this llama.cpp? "
                "verbose=True shows what llama.cpp says."
            ) from error
        self._batch.close()
        self._batch = self._stack.enter_context(contextlib.closing(Batch(self.n_batch)))
        self.tap.context = ctypes.cast(self.ctx, ctypes.c_void_p).value
        self.n_layer: int = lib.llama_model_n_layer(self.model)
        self.control_vector = ControlVector(self.ctx, self.n_layer, self.n_embd())
        silence_mtmd()
        # Closed before the interpreter takes apart what Llama.close needs.
        atexit.register(_close, weakref.ref(self))

    def close(self) -> None:
        """Free the model, if it was loaded."""
        if "_stack" in self.__dict__:
            self.tap.context = None
            super().close()

    def eval(self, tokens: Sequence[int]) -> None:
        """As ``Llama.eval``, with less to do for each token."""
        if self._logits_all:
            return super().eval(tokens)
        batch, context, n_tokens = self._batch, self._ctx, self.n_tokens
        context.kv_cache_seq_rm(-1, n_tokens, -1)
        if len(tokens) == 1:  # of a reply, of a small model: kept short
            batch.set_batch(tokens, n_tokens, False)
            context.decode(batch)
            self.input_ids[n_tokens] = tokens[0]
            self.n_tokens, self._requires_eval = n_tokens + 1, False
            return None
        for first in range(0, len(tokens), self.n_batch):
            batch.set_batch(tokens[first : first + self.n_batch], n_tokens, False)
            context.decode(batch)
            before, n_tokens = n_tokens, n_tokens + batch.n_tokens()
            self.input_ids[before:n_tokens] = batch.tokens
            self.n_tokens = n_tokens
            self._requires_eval = False
        return None

    def memory_can_rewind(self) -> bool:
        """Whether single tokens can be taken back: not from recurrent or hybrid memory."""
        return not (self._is_recurrent or self._is_hybrid)


def silence_mtmd() -> None:
    """libmtmd has a log of its own, which would ignore verbose=False: send it where llama.cpp's
    goes."""
    mtmd_cpp.mtmd_helper_log_set(llama_log_callback, None)


def _close(reference: weakref.ref[HookedLlama]) -> None:
    llama = reference()
    if llama is not None:
        llama.close()


def require_gguf(path: str) -> None:
    """Raise ModelError unless ``path`` is a file that starts like a GGUF."""
    file = Path(path)
    if not file.exists():
        raise ModelError(f"{path}: no such file")
    if not file.is_file():
        raise ModelError(f"{path}: not a file. Give a model in GGUF format.")
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise ModelError(
            f"{path}: not a GGUF file (it starts with {magic!r}, expected b'GGUF'). "
            "Give a model in GGUF format."
        )


def logits(llama: Llama) -> Rows:
    """Logits of the last decoded token, a copy, [n_vocab]."""
    pointer = lib.llama_get_logits_ith(llama.ctx, -1)
    return np.ctypeslib.as_array(pointer, (llama.n_vocab(),)).copy()


_FILE_TYPES = {
    getattr(lib, name): re.sub(r"^LLAMA_FTYPE_(MOSTLY_|ALL_)?", "", name)
    for name in dir(lib)
    if name.startswith("LLAMA_FTYPE_")
}


def quantization_name(file_type: str | None) -> str:
    """``general.file_type`` as people write it: "15" -> "Q4_K_M"; "" if not known."""
    return _FILE_TYPES.get(int(file_type), "") if file_type and file_type.isdecimal() else ""
