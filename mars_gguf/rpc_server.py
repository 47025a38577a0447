"""``python -m mars_gguf.rpc_server [HOST:PORT]`` lends this machine's GPUs, or its processors if it
has none, to models that another machine loads with ``--rpc HOST:PORT``."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from mars_gguf.console import command
from mars_gguf.errors import MarsError
from mars_gguf.options import add_threads_argument

DEFAULT = "127.0.0.1:50052"  # as llama.cpp's rpc-server


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="mars-gguf rpc_server", description=__doc__)
    p.add_argument(
        "endpoint",
        nargs="?",
        default=DEFAULT,
        metavar="HOST:PORT",
        help="IPv4 address and port to listen at; 0.0.0.0 for all addresses of the machine "
        f"(default: {DEFAULT})",
    )
    add_threads_argument(p)
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with command():
        from mars_gguf.runtime import devices, rpc

        host, _ = rpc.parse_endpoint(args.endpoint)
        rpc.proc_address("ggml_backend_rpc_start_server")
        if not host.startswith("127."):
            print(
                f"{args.endpoint}: whoever reaches this address can use this machine's memory and "
                "read what is computed on it; nothing is encrypted, nobody is asked for a key. "
                "Only for networks that you trust.",
                file=sys.stderr,
            )
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # llama.cpp never comes back to Python
        threads = args.threads or max(1, (os.cpu_count() or 2) // 2)
        rpc.serve(args.endpoint, threads, devices.to_lend())
        raise MarsError(
            f"{args.endpoint}: cannot listen there. Is the address this machine's, and "
            "the port free?"
        )


if __name__ == "__main__":
    main()
