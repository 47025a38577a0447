"""A web site on loopback that serves pictures, and what is worse."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def pictures_served(picture: bytes) -> Iterator[str]:
    """A site with a picture, a large file, redirects, and a file that never ends."""

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, _, target = self.path[1:].partition("?")
            self.send_response(302 if name == "to" else 200)
            if name == "to":
                self.send_header("Location", target)
            self.end_headers()
            if name == "picture":
                self.wfile.write(picture)
            elif name == "large":
                self.wfile.write(bytes(1 << 20))
            elif name == "endless":
                with suppress(OSError):
                    while True:
                        self.wfile.write(b".")
                        time.sleep(0.05)

        def log_message(self, *_: Any) -> None:
            pass

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{site.server_port}"
    finally:
        site.shutdown()
        site.server_close()
