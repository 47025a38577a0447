"""A small hub on loopback, for the real client of huggingface_hub: the real hub cannot be reached
from everywhere that these tests run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0" * 40
Files = Mapping[str, Path | bytes]


class Hub(BaseHTTPRequestHandler):
    """Answers what the client asks about repositories, by name, and their files."""

    def __init__(self, repositories: Mapping[str, Files], *connection: Any) -> None:
        self.repositories = repositories
        super().__init__(*connection)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked = re.fullmatch(
            r"(/api/models)?/(\w+/\w+)(?:/(?:tree|resolve)/\w+)?(?:/(.*))?", self.path.split("?")[0]
        )
        files = self.repositories.get(asked[2], {}) if asked else {}
        if not files or asked is None:
            self.missing("RepoNotFound")
        elif asked[1] and "/tree/" in self.path:
            entries = [
                {"type": "file", "path": name, "size": len(content(file)), "oid": COMMIT}
                for name, file in files.items()
            ]
            self.answer(json.dumps(entries).encode(), "application/json")
        elif asked[1]:
            names = [{"rfilename": name} for name in files]
            body = {"id": asked[2], "sha": COMMIT, "siblings": names}
            self.answer(json.dumps(body).encode(), "application/json")
        elif asked[3] in files:
            self.answer(content(files[asked[3]]), "application/octet-stream")
        else:
            self.missing("EntryNotFound")

    def missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def content(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


@contextmanager
def served(home: Path, repositories: Mapping[str, Files]) -> Iterator[dict[str, str]]:
    """The environment of a process that knows a hub with these repositories, whose cache is
    ``home``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, repositories))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(home),
        "NO_PROXY": "127.0.0.1",
    }
    server.shutdown()
