"""See and change the residual stream of a model while it decodes.

The residual stream after block l (0-based), control vector included, is the graph node
``l_out-<l>``, float32 [n_embd, n_rows] (src/models/*.cpp). The scheduler offers every node to the
context's eval callback, first with ask=True, then, where that returned True, computed
(ggml/src/ggml-backend.cpp, ggml_backend_sched_compute_splits). A compiled callback (`_tap.c`)
answers where it was built; else one in Python, which costs some percent of a small model's time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.interrupts import interrupts_held
from mars_gguf.runtime.compat import ggml

try:
    from mars_gguf.runtime import _tap  # type: ignore[attr-defined]
except ImportError:  # no compiler was there
    _tap = None

Rows = npt.NDArray[np.float32]


class LayerOutput:
    """One computed node ``l_out-<layer>``: ``n_rows`` hidden states of ``n_embd`` float32 each.

    Valid only inside the visit it is handed to. Works for tensors on any device. An access out of
    range would abort the process in ggml, so it raises IndexError here.
    """

    def __init__(self, tensor: int, layer: int, n_embd: int) -> None:
        self.tensor, self.layer, self.n_embd = tensor, layer, n_embd
        self.n_rows: int = ggml.ggml_nrows(tensor)
        if (
            ggml.ggml_n_dims(tensor) > 2
            or ggml.ggml_element_size(tensor) != 4
            or ggml.ggml_nelements(tensor) != self.n_rows * n_embd
            or not ggml.ggml_is_contiguous(tensor)
        ):
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
        rows = np.empty((stop - start, self.n_embd), np.float32)
        if rows.size:
            offset = start * 4 * self.n_embd
            ggml.ggml_backend_tensor_get(self.tensor, rows.ctypes.data, offset, rows.nbytes)
        return rows

    def write(self, start: int, rows: Rows) -> None:
        """Replace the hidden states from row ``start`` on by ``rows`` [n, n_embd]; all later
        nodes of this decode see them."""
        rows = np.ascontiguousarray(rows, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.n_embd:
            raise IndexError(f"rows of shape {rows.shape}, expected [n, {self.n_embd}]")
        if not 0 <= start <= start + len(rows) <= self.n_rows:
            raise IndexError(f"rows {start} to {start + len(rows)} of {self.n_rows}")
        if rows.size:
            offset = start * 4 * self.n_embd
            ggml.ggml_backend_tensor_set(self.tensor, rows.ctypes.data, offset, rows.nbytes)


Visit = Callable[[LayerOutput], None]
_Callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)


class _State(ctypes.Structure):
    """``struct tap`` of _tap.c."""

    _fields_ = (
        ("name_of", ctypes.c_void_p),
        ("visit", ctypes.c_void_p),
        ("names", ctypes.c_char_p),
    )


class Tap:
    """The eval callback of one context: calls a visitor with the outputs of chosen blocks.

    ``compiled``: answer in C; default: where that was built. ``install`` puts it into the
    parameters of a context; the tap must outlive that. Outside ``visiting`` it wants no node.
    """

    def __init__(self, n_embd: int = 0, *, compiled: bool | None = None) -> None:
        self.n_embd = n_embd
        self.compiled = _tap is not None if compiled is None else compiled
        self._layers: dict[bytes, int] = {}
        self._visit: Visit | None = None
        self._error: BaseException | None = None
        if self.compiled:
            self._callback: Any = _Callback(self._on_computed)
            name_of = ctypes.cast(ggml.ggml_get_name, ctypes.c_void_p).value
            visit = ctypes.cast(self._callback, ctypes.c_void_p).value
            self._state = _State(name_of, visit, None)
        else:
            self._callback = _Callback(self._on_node)

    def install(self, params: Any) -> None:
        """Make this the eval callback of ``params`` (llama_context_params)."""
        kind = lib.ggml_backend_sched_eval_callback
        if self.compiled:
            params.cb_eval = ctypes.cast(_tap.on_node, kind)
            params.cb_eval_user_data = ctypes.addressof(self._state)
        else:
            params.cb_eval = ctypes.cast(self._callback, kind)

    @contextmanager
    def visiting(self, layers: Sequence[int], visit: Visit) -> Iterator[None]:
        """Context manager: during decodes in it, call ``visit`` for each of ``layers``, once an
        ubatch. What a visit raises is raised again at its end, all but ModelErrors as a
        SteeringError."""
        try:
            with interrupts_held():
                self._visit = visit
                self._want({f"l_out-{layer}".encode(): layer for layer in layers})
                yield
        finally:
            self.done()
            self._visit, seen, self._error = None, self._error, None
            if isinstance(seen, (ModelError, KeyboardInterrupt)):
                raise seen
            if seen is not None:
                raise SteeringError(f"steering failed during a decode: {seen!r}") from seen

    def done(self) -> None:
        """Visit nothing more in this ``visiting``."""
        self._want({})

    def _want(self, layers: dict[bytes, int]) -> None:
        self._layers = layers
        if self.compiled:
            self._state.names = b"\0".join([*layers, b""]) if layers else None

    def _on_node(self, tensor: int, ask: bool, user_data: int) -> bool:
        if ask:
            return bool(self._layers) and ggml.ggml_get_name(tensor) in self._layers
        return self._on_computed(tensor, ask, user_data)

    def _on_computed(self, tensor: int, _ask: bool, _user_data: int) -> bool:
        # An exception would be lost in ctypes, and False would silently drop the rest of the
        # graph: keep the first one for after the decode.
        try:
            assert self._visit is not None
            layer = self._layers[ggml.ggml_get_name(tensor)]
            self._visit(LayerOutput(tensor, layer, self.n_embd))
        except BaseException as error:
            self._error = error
            self.done()
        return True
