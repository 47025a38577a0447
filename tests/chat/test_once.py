from __future__ import annotations

import io

import pytest

from mars_gguf.chat.once import one_prompt
from mars_gguf.errors import MarsError


class Typed(io.StringIO):
    """Standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


def prompt(monkeypatch: pytest.MonkeyPatch, given: str | None, piped: bytes | None) -> str | None:
    stdin = Typed() if piped is None else io.TextIOWrapper(io.BytesIO(piped))
    monkeypatch.setattr("sys.stdin", stdin)
    return one_prompt(given, shows=False, as_json=False)


@pytest.mark.parametrize(
    ("given", "piped", "expected"),
    [
        (None, None, None),
        ("Hello.", None, "Hello."),
        (None, b" And\nyou?\n", "And\nyou?"),
        ("-", b"And you?\n", "And you?"),
        ("Hello.", b"And you?\n", "Hello.\n\nAnd you?"),
        ("Hello.", b"\n", "Hello."),
    ],
)
def test_what_is_piped_in_follows_what_is_given(
    monkeypatch: pytest.MonkeyPatch, given: str | None, piped: bytes | None, expected: str | None
) -> None:
    assert prompt(monkeypatch, given, piped) == expected


def test_a_request_has_words_or_shows_something(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MarsError, match="the prompt is empty"):
        prompt(monkeypatch, "", None)
    assert one_prompt("", shows=True, as_json=False) == ""


def test_without_standard_input_a_prompt_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert one_prompt("Hello.", shows=False, as_json=True) == "Hello."
    for given in (None, "-"):
        with pytest.raises(MarsError, match="no standard input to read a prompt from"):
            one_prompt(given, shows=False, as_json=False)


def test_a_chat_is_not_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Typed())
    with pytest.raises(MarsError, match="--json is for one reply"):
        one_prompt(None, shows=False, as_json=True)
