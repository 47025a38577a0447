"""``python -m mars_gguf.server --model MODEL.gguf [--mmproj MMPROJ.gguf] --vector VECTOR.gguf``
serves steered models behind the OpenAI API."""

from __future__ import annotations

import logging
import os

from mars_gguf.console import command
from mars_gguf.errors import MarsError


def main(argv: list[str] | None = None) -> None:
    with command():
        try:
            import uvicorn

            from mars_gguf.server.app import create_app
            from mars_gguf.server.connections import GRACE_SECONDS, Connection, Server
            from mars_gguf.server.settings import read_settings
        except ModuleNotFoundError as error:
            raise MarsError(
                f"the server needs the package {error.name}: pip install 'mars-gguf[server]'"
            ) from error
        server, models = read_settings(argv)
        _log_to_stderr()
        app = create_app(server, models)
        config = uvicorn.Config(
            app,
            host=server.host,
            port=server.port,
            ssl_keyfile=server.ssl_keyfile,
            ssl_certfile=server.ssl_certfile,
            access_log=False,
            http=Connection,
            ws="none",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        Server(config).run()


def _log_to_stderr() -> None:
    # A copy of standard error, which points elsewhere while llama.cpp reads a picture: what another
    # request logs meanwhile would be lost.
    stream = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("mars_gguf.server")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


if __name__ == "__main__":
    main()
