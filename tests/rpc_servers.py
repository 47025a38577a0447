"""RPC servers on this machine, and connections to them that break."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mars_gguf.errors import ModelError
from mars_gguf.runtime.rpc import proc_address


def why_not() -> str:
    """Why there can be no RPC server here, "" if there can."""
    try:
        proc_address("ggml_backend_rpc_start_server")
    except ModelError as error:
        return str(error)
    return ""


def free_port() -> int:
    """A port of the loopback address that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def serving() -> Iterator[str]:
    """A server on the loopback address, of one thread: the same bits every time. Yields where."""
    endpoint = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mars_gguf.rpc_server", endpoint, "-t", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        host, port = endpoint.split(":")
        for _ in range(600):
            assert process.poll() is None, "the RPC server has ended"
            with suppress(OSError):
                socket.create_connection((host, int(port))).close()
                break
            time.sleep(0.1)
        else:
            raise AssertionError("the RPC server was not started in a minute")
        yield endpoint
    finally:
        process.kill()
        process.wait()


class Line:
    """A line to an RPC server, at ``endpoint``, that is cut when ``most`` bytes have gone to it.
    ``carried`` counts them."""

    def __init__(self, server: str, most: float = float("inf")) -> None:
        self.server, self.most, self.carried = server, most, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def _accept(self) -> None:
        host, port = self.server.split(":")
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self.listener.accept()
                upstream = socket.create_connection((host, int(port)))
                ends = client, upstream
                for there, back in (ends, ends[::-1]):
                    threading.Thread(target=self._carry, args=(there, back), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        forth = source.getsockname() == self.listener.getsockname()
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if forth:
                    self.carried += len(data)
                    if self.carried > self.most:
                        break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
