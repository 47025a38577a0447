"""The log and the metrics."""

from __future__ import annotations

import re
import uuid

from servers import HARMFUL, HARMLESS, PICTURE, Server, chat_and_line, picture_message


def test_the_log_has_a_line_for_each_request_and_no_prompt(server: Server) -> None:
    _, line = chat_and_line(server, [HARMLESS])
    for word in ("200", "modality=text", r"t=-?[\d.]+", r"gate=[\d.]+", "steered=false", r"ms=\d+"):
        assert re.search(rf" {word}( |$)", line), (word, line)
    text = server.log.read_text()
    assert HARMLESS["content"] not in text
    assert HARMFUL["content"] not in text


def test_a_path_brings_no_words_of_its_own_into_the_log(server: Server) -> None:
    def logged(path: str) -> str:
        request_id = uuid.uuid4().hex
        server.send(path, b"", "GET", **{"X-Request-ID": request_id})
        return server.line(request_id)

    line = logged("/x%20200%20steered=true%0aINFO%20POST")
    assert " GET /x%20200%20steered%3Dtrue%0AINFO%20POST 404 ms=" in line
    assert len(logged("/" + "x" * 9000)) < 400


def test_prompts_are_logged_only_on_demand_and_without_pictures(configured: Server) -> None:
    _, line = chat_and_line(configured, [picture_message(PICTURE)])
    assert '"text": "What?"' in line
    assert "base64" not in line


def test_metrics_count_requests_and_steering(server: Server) -> None:
    def numbers() -> dict[str, float]:
        lines = [line.rsplit(" ", 1) for line in server.get("/metrics").splitlines()]
        return {name: float(value) for name, value in lines if name.startswith("mars_")}

    chat_and_line(server, [HARMFUL])
    before = numbers()
    chat_and_line(server, [HARMFUL])
    chat_and_line(server, [HARMLESS])
    after = numbers()
    for name, difference in {
        'mars_requests_total{path="/v1/chat/completions",status="200"}': 2,
        'mars_steered_requests_total{modality="text",model="demo",vector="default"}': 1,
        'mars_gate_count{modality="text",model="demo",vector="default"}': 2,
        'mars_gate_bucket{le="0.0",modality="text",model="demo",vector="default"}': 1,
        'mars_replies_total{model="demo",vector="default"}': 2,
        "mars_first_token_seconds_count": 2,
    }.items():
        assert after[name] - before[name] == difference, name
