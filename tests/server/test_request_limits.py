"""The page of the server says the limits that apply."""

from __future__ import annotations

from pathlib import Path

from mars_gguf.server import request_limits

PAGE = Path(__file__).parents[2] / "docs" / "SERVER.md"


def test_the_page_of_the_server_has_each_limit() -> None:
    rows = [row.split(" | ")[:2] for row in PAGE.read_text(encoding="utf-8").splitlines()]
    said = {row[0].removeprefix("| "): row[1] for row in rows if len(row) == 2}
    limits = request_limits
    assert (
        said.items()
        >= {
            "pictures and films; seconds to fetch all of them, and to decode each": (
                f"{limits.MAX_PICTURES}; {limits.MEDIA_SECONDS:g}"
            ),
            "seconds for a body to arrive": f"{limits.BODY_SECONDS:g}",
            "requests that wait for the model": f"{limits.MAX_WAITING}",
            "bytes of a reply that is sent at once, of embeddings for one": (
                f"{limits.MAX_REPLY >> 20} MiB"
            ),
            "bytes of a stream that its client leaves unread": f"{limits.MAX_UNREAD >> 20} MiB",
        }.items()
    )
