"""Layers on other machines, by llama.cpp's RPC backend.

A server lends its devices (``python -m mars_gguf.rpc_server``, or llama.cpp's rpc-server of the
same version); to a model they are GPUs. llama.cpp offers no way to go on when a server goes away:
it ends the process (ggml/src/ggml-rpc/ggml-rpc.cpp, RPC_STATUS_ASSERT). So a server is asked
before a model is loaded, and what ends the process later is said in words.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import llama_cpp

from mars_gguf.console import terminal_restorer
from mars_gguf.errors import ModelError
from mars_gguf.runtime.compat import ggml

SECONDS = 10.0  # that a server may take to answer

_ENDPOINT = re.compile(r"([^\s:,\[\]]+):(\d{1,5})", re.ASCII)
_AddServer = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)
_StartServer = ctypes.CFUNCTYPE(
    None,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_size_t,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
)
_OnAbort = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_used: list[str] = []  # by this process, which llama.cpp forgets of none


def use_servers(servers: str) -> None:
    """Let models that this process loads from now on put layers on ``servers``, "HOST:PORT,...".

    Raises ModelError where llama.cpp was built without RPC, for what is no HOST:PORT, and for a
    server that does not answer within SECONDS. From then on, a server that goes away ends the
    process with a message and exit code 2: the rest is in llama.cpp's hands.
    """
    endpoints = [endpoint.strip() for endpoint in servers.split(",")]
    for endpoint in endpoints:
        parse_endpoint(endpoint)
    add = _AddServer(proc_address("ggml_backend_rpc_add_server"))
    _say_why_it_ends()
    for endpoint in endpoints:
        if endpoint not in _used:
            _require_reachable(endpoint)
            ggml.ggml_backend_register(_answer(add, endpoint))
            _used.append(endpoint)


def serve(endpoint: str, n_threads: int, devices: Sequence[int]) -> None:
    """Lend ``devices`` (ggml's handles) to one process after another, at ``endpoint``. Returns only
    if it cannot listen there. Raises ModelError as `use_servers`."""
    parse_endpoint(endpoint)
    start = _StartServer(proc_address("ggml_backend_rpc_start_server"))
    handles = (ctypes.c_void_p * len(devices))(*devices)
    start(endpoint.encode(), None, n_threads, len(devices), handles)


def parse_endpoint(endpoint: str) -> tuple[str, int]:
    """Host and port. Raises ModelError for what is no HOST:PORT."""
    found = _ENDPOINT.fullmatch(endpoint)
    if found is None or not 0 < int(found[2]) < 1 << 16:
        raise ModelError(
            f"RPC server: found {endpoint!r:.80}, expected HOST:PORT, as in 192.168.1.2:50052 (a "
            "name or an IPv4 address; several servers with commas between them)"
        )
    return found[1], int(found[2])


def proc_address(name: str) -> int:
    """The function ``name`` of the RPC backend. Raises ModelError where llama.cpp has none."""
    backend = ggml.ggml_backend_reg_by_name(b"RPC")
    address = backend and ggml.ggml_backend_reg_get_proc_address(backend, name.encode())
    if not address:
        raise ModelError(
            "RPC servers: this llama.cpp was built without RPC. Build it with: "
            'CXXFLAGS=-U__AMX_INT8__ CMAKE_ARGS="-DGGML_RPC=ON" pip install --no-cache-dir '
            f"--force-reinstall --no-deps llama-cpp-python=={llama_cpp.__version__}"
        )
    return int(address)


def _require_reachable(endpoint: str) -> None:
    """Raise ModelError unless something listens at ``endpoint``: llama.cpp would abort."""
    host, port = parse_endpoint(endpoint)
    try:
        # The first address, IPv4: as llama.cpp takes it.
        address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(SECONDS)
            probe.connect(address)
    except (OSError, UnicodeError) as error:
        raise ModelError(
            f"RPC server {endpoint}: cannot be reached ({error}). Is it running there, and does it "
            "listen on an address that this machine reaches?"
        ) from error


def _answer(add: Callable[[bytes], int | None], endpoint: str) -> int:
    """ggml's handle of the server at ``endpoint``, once it has answered."""
    found: list[int | None] = []
    # A thread of its own: a server that lends to another process answers when that one is done.
    asking = threading.Thread(target=lambda: found.append(add(endpoint.encode())), daemon=True)
    asking.start()
    asking.join(SECONDS)
    if not found:
        raise ModelError(
            f"RPC server {endpoint}: takes connections, but has not answered within {SECONDS:.0f} "
            "s. Does another process use it? It serves one at a time."
        )
    if found[0] is None:
        raise ModelError(f"RPC server {endpoint}: has no devices to lend")
    return found[0]


@cache
def _say_why_it_ends() -> Any:
    """From now on: before llama.cpp ends the process over a server, say so and end it with exit
    code 2. Returns ggml's callback, which the cache keeps."""
    terminal = os.dup(2)  # it points elsewhere while a model is loaded
    restore = terminal_restorer()

    def on_abort(message: bytes) -> None:
        reason = message.decode(errors="replace").strip()
        servers = "ggml-rpc" in reason
        if servers:
            said = reason.split(": ", 1)[-1]
            reason = (
                f"error: RPC server ({', '.join(_used) or 'just asked'}): {said}. What was running "
                "is lost. Is the server still there, and of the same llama.cpp "
                f"(llama-cpp-python {llama_cpp.__version__})? Start it again, then this command."
            )
        with suppress(Exception):  # what follows matters more
            restore()
        with suppress(OSError):
            os.write(terminal, f"{reason}\n".encode())
        if servers:
            os._exit(2)  # else llama.cpp calls abort()

    callback = _OnAbort(on_abort)
    ggml.ggml_set_abort_callback(ctypes.cast(callback, ctypes.c_void_p))
    return callback
