"""A request whose client leaves."""

from __future__ import annotations

import re
import time
import uuid

from servers import ENDLESS, HARMFUL, Server, chat


def test_a_client_that_leaves_frees_the_model(server: Server) -> None:
    endless = {"messages": [HARMFUL], "max_tokens": 900, **ENDLESS}
    for stream in (False, True):
        request_id = uuid.uuid4().hex
        with server.post({**endless, "stream": stream}, request_id) as connection:
            if stream:
                connection.recv(1)
            else:
                time.sleep(0.3)
        line = server.line(request_id)
        assert " 499 " in line
        tokens = re.search(r"tokens=(\d+)", line)
        assert tokens is None or int(tokens[1]) < 900
        assert tokens is not None or not stream
        assert chat(server, [HARMFUL])["mars"]["alpha"] > 0


def test_a_client_that_leaves_the_line_has_not_to_be_waited_for(server: Server) -> None:
    endless = {"messages": [HARMFUL], "max_tokens": 900, **ENDLESS}
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    with server.post({**endless, "stream": True}, first) as connection:
        connection.recv(1)
        server.post(endless, second).close()
        assert " 499 " in server.line(second)
        assert server.lines(f"request_id={first}") == []  # the model is at that still
    server.line(first)
