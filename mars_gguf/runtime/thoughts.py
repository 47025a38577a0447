"""Where the answer of a reply begins, after its thought, if it has one: told by the texts of the
tokens that are generated, never by what the prompt says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from mars_gguf.reasoning import Markers

# thought: within one. candidate: the answer, or a thought, begins with the next token that is not
# blank. opening: it began with what may become the marker of a thought. answer: it has begun.
State = Literal["thought", "candidate", "opening", "answer"]
Meaning = Literal["blank", "thought", "answer"]


class AnswerWatch:
    """Follows one reply, token by token.

    piece: the text of a token, special ones too. opened: the prompt had opened a thought. whole:
    the opening marker is one token, so that no other token begins it, and so is the closing one.
    """

    def __init__(
        self, markers: Markers, piece: Callable[[int], bytes], *, opened: bool, whole: bool
    ) -> None:
        self._open, self._close = (marker.encode() for marker in markers)
        self._piece, self._whole = piece, whole
        self.state: State = "thought" if opened else "candidate"
        self.answered = False  # since the last thought began
        self.after_thought = False
        self._text = b""  # since the state began; in a thought and an answer, the end of it

    @property
    def waits(self) -> bool:
        """Whether the answer has yet to begin."""
        return self.state != "answer"

    @property
    def probes(self) -> bool:
        """Whether the answer may begin with the token after the next one: then the state of that
        next one is needed, which was not evaluated yet."""
        # One token may end the marker and begin the answer.
        if self.state == "thought":
            return self._closes(self._text)
        return self.state == "candidate" or (self.state == "answer" and self._goes_on(self._text))

    def _closes(self, text: bytes) -> bool:
        """Whether ``text`` ends with a part of the closing marker."""
        return any(text.endswith(self._close[:n]) for n in range(1, len(self._close)))

    def _goes_on(self, text: bytes) -> bool:
        """Whether an answer may begin anew within the token after ``text``."""
        return not self._whole and self._closes(text)

    def begins(self, token: int) -> bool:
        """Whether the answer begins with ``token``, the next one, or begins anew after a marker
        within the answer."""
        if self.state == "answer":
            _, _, after = (self._text + self._piece(token)).partition(self._close)
            return self._goes_on(self._text) and bool(after.strip())
        return self.reads(token) == "answer"

    def reads(self, token: int) -> Meaning:
        """What ``token``, the next one, would be."""
        piece = self._piece(token)
        if self.state == "thought":
            _, closed, after = (self._text + piece).partition(self._close)
            return "answer" if closed and after.strip() else "thought"
        text = (self._text + piece).lstrip()
        if self.state == "answer" or not text:
            return "answer" if self.state == "answer" else "blank"
        begun = text.startswith(self._open) or (
            self._open.startswith(text) and not (self._whole and self.state == "candidate")
        )
        return "thought" if begun else "answer"

    def take(self, token: int, *, over: bool = False) -> None:
        """Go on with ``token``, the next one. ``over``: if it begins no thought, the answer has
        begun."""
        meaning, text = self.reads(token), self._text + self._piece(token)
        if self.state in ("thought", "answer"):
            _, closed, after = text.partition(self._close)
            if closed:
                self.after_thought = True
                self._go("answer" if after.strip() else "candidate", b"")
            else:
                self._text = text[1 - len(self._close) :]
        elif meaning == "answer" or (over and meaning == "blank"):
            self._go("answer", b"")
        elif meaning == "thought":
            opened = text.lstrip().startswith(self._open)
            self.answered = False
            self._go("thought" if opened else "opening", b"" if opened else text)

    def _go(self, state: State, text: bytes) -> None:
        self.state, self._text = state, text
        self.answered = self.answered or state == "answer"

    def alone(self, tokens: list[int]) -> list[int]:
        """Of a token that was taken and what a draft says after it, those that can be evaluated at
        once: one while the answer has yet to begin, and none by which it may begin anew."""
        if self.waits or self.probes:
            return tokens[:1]
        text, kept = self._text, tokens[:1]
        for token in tokens[1:]:
            text += self._piece(token)
            if self._close in text or self._goes_on(text):
                break
            kept.append(token)
        return kept
