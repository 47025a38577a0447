"""Lets a model think before it answers: its own greedy thought about each prompt is ended after so
many tokens, so that the state where the answer begins can be measured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from mars_gguf.reasoning import N_THOUGHT, Markers
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.prefill import CachedPrompt, Decoder

LOOKED_BACK = 16  # tokens, in whose text the end of a thought is looked for


class Thinker:
    """Lets a model think about prompts.

    n_thought: tokens after which a thought is ended as the chat template ends one in earlier turns.
    """

    def __init__(self, llama: SteeredLlama, decoder: Decoder, n_thought: int = N_THOUGHT) -> None:
        assert llama.template.thinks is not None
        self.llama, self.decoder, self.n_thought = llama, decoder, n_thought
        self.markers: Markers = llama.template.thinks
        self.closing = self._tokens(llama.template.closing)
        self._after = self._tokens(llama.template.closing.partition(self.markers.close)[2])

    @property
    def n_cells(self) -> int:
        """The cells of the context that a thought takes, at most."""
        return self.n_thought + len(self.closing)

    def thoughts(self, prompts: Sequence[CachedPrompt]) -> list[list[int]]:
        """Generates the tokens between each prompt and its answer, the end of the thought among
        them; none where the model does not think."""
        leading = ThoughtAndAnswer(self, prompts, 0)
        found = self.decoder.replies(prompts, 0, nullcontext(), leading)
        return [reply[: leading.answers[i]] for i, reply in enumerate(found)]

    def text(self, tokens: Sequence[int]) -> str:
        """Writes out ``tokens``, special ones too."""
        said = self.llama.detokenize(list(tokens), special=True)
        return said.decode("utf-8", errors="replace")

    def _tokens(self, text: str) -> list[int]:
        return self.llama.tokenize(text.encode(), add_bos=False, special=True)

    def end(self, reply: list[int]) -> list[int] | None:
        """Returns the tokens that end the thought of which ``reply`` is; None if it goes on."""
        if self.decoder.ends(reply[-1]):
            reply.pop()
            return self.closing
        if self.markers.close in self.text(reply[-LOOKED_BACK:]):
            return self._after
        return self.closing if len(reply) >= self.n_thought else None

    def begins(self, reply: list[int]) -> bool | None:
        """Tells whether a reply begins a thought; None if it may still do so."""
        begun = self.text(reply[:LOOKED_BACK]).lstrip()
        if begun.startswith(self.markers.open):
            return True
        over = self.decoder.ends(reply[-1]) or len(reply) >= self.n_thought
        return None if self.markers.open.startswith(begun) and not over else False


class ThoughtAndAnswer:
    """Leads the replies to ``prompts`` (prefill.Follow) through their thoughts to ``n_tokens`` of
    their answers. ``answers``: by reply, how many of its tokens come before the answer."""

    def __init__(self, thinker: Thinker, prompts: Sequence[CachedPrompt], n_tokens: int) -> None:
        self.thinker, self.n_tokens = thinker, n_tokens
        self.begun = [prompt.begun for prompt in prompts]
        self.answers: dict[int, int] = {}

    def __call__(self, number: int, reply: list[int]) -> Sequence[int] | None:
        ending: Sequence[int] = ()
        if number not in self.answers:
            thinks = self.begun[number] or self.thinker.begins(reply)
            ended = self.thinker.end(reply) if thinks else None
            if thinks is None or (thinks and ended is None):
                return ()
            ending = ended or ()
            self.answers[number] = len(reply) + len(ending) if thinks else 0
        n_answer = len(reply) + len(ending) - self.answers[number]
        over = n_answer > 0 and self.thinker.decoder.ends(reply[-1])
        if over or n_answer >= self.n_tokens:
            reply += ending
            return None
        return ending
