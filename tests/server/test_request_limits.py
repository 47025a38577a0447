"""The table of limits: applied to the fields of requests, and said by the page of the server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pages import ROOT

from mars_gguf.server.bodies import parsed
from mars_gguf.server.http_errors import RequestError
from mars_gguf.server.request_limits import LIMITS, most


def test_the_page_of_the_server_has_the_table() -> None:
    page = (ROOT / "docs" / "SERVER.md").read_text("utf-8").split("\n## Limits\n")[1]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    said = {row[0]: row[1:] for row in rows}
    assert [row[0] for row in rows[2 : len(LIMITS) + 2]] == [each.what for each in LIMITS.values()]
    for limit in LIMITS.values():
        number, status = said[limit.what]
        if limit.most is None:
            assert "`" in number, limit
        else:
            mebi = limit.most % (1 << 20) == 0
            assert number == (f"{int(limit.most) >> 20} Mi" if mebi else f"{limit.most:,}")
        assert status.startswith(str(limit.status or "closed"))


def at_most(field: str, n: int) -> Any:
    """A value of which there are so many in a field."""
    match field:
        case "parts":
            return {"messages": [{"content": [0] * (n // 2), "tool_calls": [0] * (n - n // 2)}]}
        case "bias":
            return {"logit_bias": {str(key): 0 for key in range(n)}}
        case "bias_length":
            return {"logit_bias": {"a": 0, "b" * n: 0}}
        case "stop_length":
            return {"stop": ["a", "b" * n]}
        case "n" | "top_logprobs" | "logprobs":
            return {field: n}
    return {field: [{}] * n}


@pytest.mark.parametrize("name", [name for name, limit in LIMITS.items() if limit.count])
def test_a_field_has_at_most_what_the_table_says(name: str) -> None:
    assert parsed(json.dumps(given := at_most(name, most(name))).encode()) == given
    with pytest.raises(RequestError, match=f"found.* {most(name)}\\b") as refused:
        parsed(json.dumps(at_most(name, most(name) + 1)).encode())
    assert (refused.value.status, refused.value.limit) == (400, name)


@pytest.mark.parametrize(
    "content", [{"stop": "a" * 257}, {"top_logprobs": "21"}, {"n": 2.0}, {"logprobs": 1 << 40}]
)
def test_other_ways_to_write_a_field_are_counted_as_well(content: Any) -> None:
    with pytest.raises(RequestError, match="found"):
        parsed(json.dumps(content).encode())
