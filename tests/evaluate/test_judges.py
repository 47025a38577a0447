"""Judges by a model, and how far judges agree."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from second_judges import Say, Server, address, saying, serving
from sklearn.metrics import cohen_kappa_score

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.judges import (
    Endpoint,
    LocalModel,
    RatingJudge,
    agreement,
)
from mars_gguf.openings import Verdict


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as found:
        yield found


def late(_: dict[str, object]) -> tuple[int, bytes]:
    time.sleep(1)
    return 200, b"{}"


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_an_endpoint_is_asked_for_one_word_at_temperature_0(
    server: Server, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    server.say = saying("REFUSED")
    judge = RatingJudge(Endpoint(address(server) + path))
    assert judge("Make a {bomb}", "I will <not>.") == "refused"
    server.say = saying("HARMFUL")
    assert judge("Make a {bomb}", "I will <not>. Take") == "harmful"
    server.say = saying("<think>It complies.</think>\n**Harmless.**")
    assert judge("Make a cake", "<think>No!</think>Take flour.") == "answered"
    assert judge("Make a cake", " \n") == "empty"
    [(where, body, key), _, (_, second, _)] = server.seen
    asked = second["messages"][0]["content"]
    assert "Take flour." in asked and "No!" not in asked
    assert where == "/v1/chat/completions" and key == "Bearer a key"
    assert body["temperature"] == 0 and body["model"] == "small"
    asked = body["messages"][0]["content"]
    assert "Make a {bomb}" in asked and "I will <not>." in asked
    assert not judge.failures


@pytest.mark.parametrize(
    ("say", "reason"),
    [
        (saying("I think that it refused."), "none of the words but 'i think that it refused'"),
        (saying("REFUSED or HARMFUL"), "none of the words"),
        (saying(None), "an empty answer"),
        (saying("<think>REFUSED"), "an empty answer"),
        (lambda _: (500, b"REFUSED"), "HTTP 500"),
        (lambda _: (302, b"REFUSED"), "HTTP 302"),
        (lambda _: (200, b"REFUSED"), r"not the answer of a chat completion \(JSONDecodeError\)"),
        (lambda _: (200, b"[]"), r"not the answer of a chat completion \(TypeError\)"),
        (lambda _: (200, b'{"choices": []}'), "not the answer of a chat completion"),
        (lambda _: (200, b'" ' * 600_000), "not the answer of a chat completion"),
        (late, "no answer in time"),
    ],
)
def test_any_other_answer_is_unjudged_and_its_reason_counted(
    server: Server, say: Say, reason: str
) -> None:
    server.say = say
    judge = RatingJudge(Endpoint(address(server), "large", timeout=0.3))
    assert [judge("a", "b"), judge("a", "b")] == ["unjudged", "unjudged"]
    [(found, count)] = judge.failures.items()
    assert count == 2 and re.match(reason, found), found


def test_a_server_that_is_not_there_leaves_replies_unjudged(server: Server) -> None:
    url = address(server)
    server.shutdown()
    server.server_close()
    judge = RatingJudge(Endpoint(url))
    assert judge("a", "b") == "unjudged"
    assert next(iter(judge.failures)).startswith("no connection")


@pytest.mark.parametrize("url", ["", "localhost:8000", "file:///etc/passwd", "http://", "http://["])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(MarsError, match="not an address"):
        Endpoint(url)


VERDICTS: tuple[Verdict, ...] = ("refused", "answered", "empty", "unjudged")
verdict = st.sampled_from(VERDICTS)


@pytest.mark.filterwarnings("ignore")  # scikit-learn's, of a kappa that is undefined
@given(st.lists(st.tuples(verdict, verdict)))
def test_agreement_is_the_share_and_cohens_kappa_of_what_both_judged(
    pairs: list[tuple[Verdict, Verdict]],
) -> None:
    found = agreement([a for a, _ in pairs], [b for _, b in pairs])
    judged = [pair for pair in pairs if "unjudged" not in pair]
    assert found["n"] == len(judged)
    if not judged:
        assert (found["share"], found["kappa"]) == (None, None)
        return
    assert found["share"] == pytest.approx(np.mean([a == b for a, b in judged]))
    kappa = cohen_kappa_score(*zip(*judged, strict=True))
    assert (found["kappa"] is None) if np.isnan(kappa) else found["kappa"] == pytest.approx(kappa)


def test_of_judges_that_tell_harmful_answers_from_others_answers_are_compared() -> None:
    assert agreement(["answered", "refused"], ["harmful", "harmful"])["share"] == 0.5


def test_a_model_on_this_machine_judges_or_is_said_not_to(smollm2: str) -> None:
    model = LocalModel(smollm2, n_ctx=1024, n_threads=1, verbose=False)
    assert str(model("Say hello.")).strip()
    asked = []

    def ask(question: str) -> object:
        asked.append(question)
        return model(question)

    judge = RatingJudge(ask)
    verdict = judge("How do I bake bread?", "Take flour, water, salt and yeast.")
    assert "Take flour, water" in asked[0] and "How do I bake bread?" in asked[0]
    assert verdict in ("refused", "answered", "harmful") or judge.failures
    failed = judge.failures.total()
    assert judge("How?", "bread " * 2000) == "unjudged"  # too long for its context
    assert judge.failures.total() == failed + 1
