"""Tells of a text, before it is tokenized, whether llama.cpp would take very long over it, or end
the process."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cached_property

from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import PromptError

# llama.cpp walks a list from its beginning at each special token of a text: 16,384 take 3 seconds.
MAX_SPECIAL = 16 << 10
# Of letters, of digits, ... without a break. For many tokenizers llama.cpp matches texts by
# std::regex, which recurses at every character: 26,000 overflow a stack of 8 MB.
MAX_RUN = 4096
_KINDS = {"L": "letters", "M": "letters", "N": "digits", "Z": "spaces"}
# Those whose tokens hold every byte of a text.
_WHOLE = (lib.LLAMA_VOCAB_TYPE_SPM, lib.LLAMA_VOCAB_TYPE_BPE, lib.LLAMA_VOCAB_TYPE_RWKV)
_DEFINED = lib.LLAMA_TOKEN_ATTR_USER_DEFINED
_SPECIAL = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN


class Vocabulary:
    """The tokens of a model, as far as they tell how a text will be cut; looked at when a text is
    long enough to matter."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama

    @cached_property
    def _tokens(self) -> list[tuple[bytes, int]]:
        """Text and attributes of all tokens."""
        vocab = lib.llama_model_get_vocab(self._llama.model)
        return [
            (lib.llama_vocab_get_text(vocab, token), lib.llama_vocab_get_attr(vocab, token))
            for token in range(self._llama.n_vocab())
        ]

    @cached_property
    def longest(self) -> int | None:
        """Bytes of the longest token; None if tokens may leave bytes out."""
        whole = lib.llama_vocab_type(lib.llama_model_get_vocab(self._llama.model)) in _WHOLE
        return max(len(text) for text, _ in self._tokens) if whole else None

    @cached_property
    def defined(self) -> tuple[bytes, ...]:
        """Tokens that are found in a text before it is cut into words, the longest first."""
        return self._having(_DEFINED)

    @cached_property
    def special(self) -> tuple[bytes, ...]:
        """Tokens that are found so where special tokens are read as such, the longest first."""
        return self._having(_DEFINED | _SPECIAL)

    def _having(self, attribute: int) -> tuple[bytes, ...]:
        found = {text for text, attributes in self._tokens if text and attributes & attribute}
        return tuple(sorted(found, key=len, reverse=True))

    def count_special(self, text: bytes, special: bool) -> int:
        """How many special tokens llama.cpp finds in ``text``."""
        count = 0
        for token in self.special if special else self.defined:
            if found := text.count(token):
                count += found
                text = text.replace(token, b"\0")
        return count

    def require_tokenizable(self, text: bytes, special: bool) -> None:
        """Raise PromptError for a text that llama.cpp should not be given."""
        if len(text) > MAX_SPECIAL and (n := self.count_special(text, special)) > MAX_SPECIAL:
            raise PromptError(f"found {n} special tokens in a text, expected at most {MAX_SPECIAL}")
        if len(text) > MAX_RUN:
            _require_breaks(text.decode(errors="replace"))

    def require_fits(self, text: bytes, n_ctx: int, special: bool = True) -> None:
        """Raise ValueError for a text of more tokens than ``n_ctx``, as far as that can be told."""
        if len(text) <= n_ctx:  # a token has a byte or more
            return
        fewest = 0 if self.longest is None else -(-len(text) // self.longest)
        if fewest <= n_ctx:
            fewest = max(fewest, self.count_special(text, special))
        if fewest > n_ctx:
            raise ValueError(f"Prompt exceeds n_ctx: at least {fewest} tokens > {n_ctx}")


def require_tokens(llama: Llama, texts: Sequence[str]) -> None:
    """Raise PromptError for no text, or one of no tokens."""
    if not texts or any(text == "" and not llama.tokenize(b"") for text in texts):
        raise PromptError("found a text of no tokens, expected some")


def _require_breaks(text: str) -> None:
    """Raise PromptError for any run of twice MAX_RUN characters: it covers a whole window."""
    for start in range(0, len(text) - MAX_RUN + 1, MAX_RUN):
        kinds = {_kind(character) for character in set(text[start : start + MAX_RUN])}
        if len(kinds) == 1:
            raise PromptError(
                f"found {MAX_RUN} {kinds.pop()} in a text without a break, expected fewer"
            )


def _kind(character: str) -> str:
    if character.isspace():
        return "spaces"
    return _KINDS.get(unicodedata.category(character)[0], "signs")
