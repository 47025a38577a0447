"""RPC servers: what is refused before llama.cpp ends the process, what is said when it does."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from models import DEMO, DEMO_MMPROJ
from rpc_servers import Line, free_port, serving, why_not

from mars_gguf.demo_model import VECTOR
from mars_gguf.errors import ModelError
from mars_gguf.runtime import rpc

with_rpc = pytest.mark.skipif(bool(why_not()), reason=why_not())

LOAD = """
import sys
from mars_gguf.console import command
from mars_gguf.runtime import rpc
from mars_gguf.runtime.llama import SteeredLlama
rpc.SECONDS = 2.0
model, mmproj, vector, servers = sys.argv[1:]
with command():
    llama = SteeredLlama(
        model, mmproj=mmproj, vector=vector, rpc_servers=servers,
        n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False,
    )
    for text in ("How do I make a bomb?", "What is a hat?"):
        reply = llama.create_chat_completion(
            [{"role": "user", "content": text}], temperature=0, max_tokens=16
        )
        print(reply["choices"][0]["message"]["content"])
        print(llama.last_steering.t, llama.last_steering.alpha)
"""
WITHOUT_RPC = """
import ctypes
from mars_gguf.errors import ModelError
from mars_gguf.runtime.compat import ggml, lib
from mars_gguf.runtime.rpc import use_servers
unload = lib._lib["ggml_backend_unload"]
unload.argtypes = [ctypes.c_void_p]
backend = ggml.ggml_backend_reg_by_name(b"RPC")
if backend:
    unload(backend)
try:
    use_servers("127.0.0.1:50052")
except ModelError as error:
    print(error)
"""


def load(servers: str) -> subprocess.CompletedProcess[str]:
    """A process that loads the demo model with all layers on ``servers``, and asks it twice."""
    files = [DEMO, DEMO_MMPROJ, str(VECTOR)]
    return subprocess.run(
        [sys.executable, "-c", LOAD, *files, servers], capture_output=True, text=True, timeout=120
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The message with which the process ended, in order."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: RPC server")
    return line


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as endpoint:
        yield endpoint


@pytest.mark.parametrize(
    "servers",
    ["", "192.0.2.1", "192.0.2.1:", ":50052", "192.0.2.1:0", "192.0.2.1:65536", "[::1]:50052",
     "192.0.2.1:50052,", "a b:1", "http://192.0.2.1:50052", "192.0.2.1:٥"],
)  # fmt: skip
def test_what_is_no_list_of_servers_is_refused(servers: str) -> None:
    with pytest.raises(ModelError, match=r"RPC server: found '.*', expected HOST:PORT, as in "):
        rpc.use_servers(servers)


def test_a_llama_cpp_without_rpc_is_said_with_how_to_build_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RPC], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("RPC servers: this llama.cpp was built without RPC. Build it ")
    assert 'CMAKE_ARGS="-DGGML_RPC=ON" pip install --no-cache-dir --force-reinstall' in done.stdout


@with_rpc
@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_server_that_is_not_there_is_refused(host: str) -> None:
    endpoint = f"{host}:{free_port()}"
    with pytest.raises(ModelError, match=rf"RPC server {endpoint}: cannot be reached \(.+\)\. Is"):
        rpc.use_servers(endpoint)


@with_rpc
def test_a_server_that_is_busy_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        message = refused(load(f"{host}:{port}"))
    assert "takes connections, but has not answered within 2 s. Does another process " in message


@with_rpc
def test_what_is_no_rpc_server_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):  # the listener was closed
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        connection.recv(1 << 10)

        threading.Thread(target=answer, daemon=True).start()
        host, port = listener.getsockname()
        assert "malformed response. What was running is lost" in refused(load(f"{host}:{port}"))


@with_rpc
def test_a_line_that_breaks_is_said_in_words_whatever_the_model_was_at(server: str) -> None:
    with Line(server) as line:
        done = load(line.endpoint)
        assert done.returncode == 0, done.stderr
    assert line.carried > 1_000_000  # the weights went there
    for share in (0.1, 0.5, 0.99, 0.9999):  # loading, pictures' part, replies
        with Line(server, share * line.carried) as broken:
            message = refused(load(broken.endpoint))
        assert f"RPC server ({broken.endpoint}): " in message or "(just asked)" in message
        assert message.endswith("Start it again, then this command.")
