"""Refuses, before llama.cpp is given them, texts, grammars and biases that it would end the process
over, or take very long over."""

from __future__ import annotations

import ctypes
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from numbers import Integral
from typing import Any

import numpy as np
from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import PromptError
from mars_gguf.runtime.compat import suppress_stdout_stderr
from mars_gguf.runtime.messages import BREAK
from mars_gguf.runtime.reading import logits

# llama.cpp walks a list from its beginning at each special token of a text: 16,384 take 3 seconds.
MAX_SPECIAL = 16 << 10
# Of letters, of digits, ... without a break. For many tokenizers llama.cpp matches texts by
# std::regex, which recurses at every character: 26,000 overflow a stack of 8 MB.
MAX_RUN = 4096
_KINDS = {"L": "letters", "M": "letters", "N": "digits", "Z": "spaces"}
# Those whose tokens hold every byte of a text.
_WHOLE = (lib.LLAMA_VOCAB_TYPE_SPM, lib.LLAMA_VOCAB_TYPE_BPE, lib.LLAMA_VOCAB_TYPE_RWKV)
_CONTROL = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
_SPECIAL = _CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED


class Vocabulary:
    """The tokens of a model, as far as they tell how a text will be cut; looked at when they are
    needed first."""

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
    def special(self) -> tuple[bytes, ...]:
        """Tokens that are found in a text before it is cut into words, the longest first."""
        return self._having(_SPECIAL)

    def as_text(self, text: str) -> str:
        """``text`` with BREAK after the first character of each special token's text, so that
        the model reads it as text, and not as the end of a turn, say. Any other is returned as
        it is."""
        for token in self._control:
            while token in text:  # again, where two of it overlap
                text = text.replace(token, token[0] + BREAK + token[1:])
        return text

    @cached_property
    def _control(self) -> list[str]:
        """Tokens that steer a model, such as those that begin and end a turn, the longest first."""
        texts = (text.decode(errors="ignore") for text in self._having(_CONTROL))
        return [text for text in texts if len(text) > 1]

    def _having(self, attribute: int) -> tuple[bytes, ...]:
        found = {text for text, attributes in self._tokens if text and attributes & attribute}
        return tuple(sorted(found, key=len, reverse=True))

    def count_special(self, text: bytes) -> int:
        """How many special tokens llama.cpp finds in ``text``."""
        count = 0
        for token in self.special:
            if found := text.count(token):
                count += found
                text = text.replace(token, b"\0")
        return count

    def require_tokenizable(self, text: bytes) -> None:
        """Raise PromptError for a text that llama.cpp should not be given."""
        if len(text) > MAX_SPECIAL and (n := self.count_special(text)) > MAX_SPECIAL:
            raise PromptError(f"found {n} special tokens in a text, expected at most {MAX_SPECIAL}")
        if len(text) > MAX_RUN:
            _require_breaks(text.decode(errors="replace"))

    def require_fits(self, text: bytes, n_ctx: int) -> None:
        """Raise ValueError for a text of more tokens than ``n_ctx``, as far as that can be told."""
        if len(text) <= n_ctx:  # a token has a byte or more
            return
        fewest = 0 if self.longest is None else -(-len(text) // self.longest)
        if fewest <= n_ctx:
            fewest = max(fewest, self.count_special(text))
        if fewest > n_ctx:
            raise ValueError(f"Prompt exceeds n_ctx: at least {fewest} tokens > {n_ctx}")


def require_tokens(llama: Llama, texts: Sequence[str]) -> None:
    """Raise PromptError for no text, or one of no tokens, or of more than llama.cpp takes in a
    batch: those it would leave out, or end the process over."""
    if not texts:
        raise PromptError("found a text of no tokens, expected some")
    most = min(llama.n_batch, lib.llama_n_ubatch(llama.ctx))
    for text in texts:
        found = len(llama.tokenize(text.encode()))
        if not 0 < found <= most:
            raise PromptError(
                f"found a text of {found or 'no'} tokens, expected 1 to {most} (n_batch, n_ubatch)"
            )


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


MAX_GRAMMAR = 32 << 10  # characters; llama.cpp unrolls {1000}, to 260 MB at this length
MAX_PARENTHESES = 1000  # llama.cpp's parser recurses at each; 20,000 overflow its stack
MAX_BIAS = 1e6  # of a logit; if all that a grammar allows became -inf, llama.cpp would abort
# Beyond these logits become infinite or NaN in float32, or a share is none; llama.cpp may then draw
# what a grammar forbids.
BOUNDS = {
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "mirostat_tau": (0, 1e3),
    "mirostat_eta": (0, 1e3),
    "temperature": (1e-6, 1e6),
    "repeat_penalty": (1e-3, 1e3),
    "frequency_penalty": (-1e3, 1e3),
    "presence_penalty": (-1e3, 1e3),
}


def require_sampling(llama: Llama, grammar: Any, **arguments: Any) -> None:
    """Raise PromptError for arguments of a sampler over which llama.cpp would end the process."""
    for name, (least, most) in BOUNDS.items():
        tempers = name == "temperature"
        value = arguments.get("temp" if tempers else name)
        untempered = tempers and value is not None and value <= 0
        if value is not None and not untempered and not least <= value <= most:  # NaN neither
            raise PromptError(f"{name}: found {value}, expected {least:g} to {most:g}")
    if grammar is not None:
        require_grammar(llama, grammar._grammar)


_CANDIDATE = np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True)


def require_allowed(llama: Llama, sampler: Any) -> Any:
    """``sampler``, made to raise PromptError where its grammar allows no token."""
    sampler.sample = partial(_sample_allowed, llama, sampler)
    return sampler


def _sample_allowed(llama: Llama, sampler: Any, _context: object, index: int = -1) -> int:
    """The token that ``sampler`` draws, as llama_sampler_sample does, but that it is looked at
    before the grammar takes it: over one that it forbids, llama.cpp ends the process, and draws
    such a one where no token is allowed. Raises PromptError for that."""
    candidates = np.zeros(llama.n_vocab(), _CANDIDATE)
    candidates["id"] = np.arange(len(candidates))
    candidates["logit"] = logits(llama, index)
    data = candidates.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
    drawn = lib.llama_token_data_array(data, len(candidates), -1, False)
    lib.llama_sampler_apply(sampler.sampler, ctypes.byref(drawn))
    chosen = drawn.data[max(drawn.selected, 0)]
    if drawn.selected < 0 or not chosen.logit > -np.inf:  # NaN neither
        llama._sampler = None  # else the next `sample` would go on with it
        raise PromptError("grammar: it allows no token of this model here, so the reply ends")
    token = int(chosen.id)
    lib.llama_sampler_accept(sampler.sampler, token)
    return token


def require_grammar(llama: Llama, grammar: str) -> None:
    """Raise PromptError for a grammar that llama.cpp cannot parse."""
    for what, found, limit in (
        ("characters", len(grammar), MAX_GRAMMAR),
        ("parentheses", grammar.count("("), MAX_PARENTHESES),
    ):
        if found > limit:
            raise PromptError(f"grammar: found {found} {what}, expected at most {limit}")
    with suppress_stdout_stderr(disable=llama.verbose):  # it would quote the grammar
        vocab = lib.llama_model_get_vocab(llama.model)
        sampler = lib.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
    if not sampler:
        raise PromptError(
            "grammar: not valid, expected GBNF with a rule 'root', every rule defined and none "
            "left-recursive"
        )
    lib.llama_sampler_free(sampler)


def require_arguments(
    llama: Any,
    *,
    prompt: object = None,
    suffix: object = None,
    logit_bias: Mapping[Any, float] | None = None,
    seed: int | None = None,
    **_: Any,
) -> None:
    """Raise PromptError for arguments of a completion with a ``logit_bias`` of what is no token, or
    one that is no sensible number; or with a ``seed`` over which all later ones would fail.
    ValueError for a text of more tokens than the context has, as far as that can be told."""
    for text in (prompt, suffix):
        if isinstance(text, str):
            llama.vocabulary.require_fits(text.encode(), llama.n_ctx())
    if not isinstance(seed, Integral | None):
        raise PromptError(f"seed: found a {type(seed).__name__}, expected a whole number")
    n_vocab = llama.n_vocab()
    for key, value in (logit_bias or {}).items():
        token = str(key)
        known = token.isascii() and token.isdigit() and len(token) < 20 and int(token) < n_vocab
        if not known:
            raise PromptError(
                f"logit_bias: found the key {token[:20]!r}, expected token ids from 0 to "
                f"{n_vocab - 1}, or text with logit_bias_type 'tokens'"
            )
        if not abs(float(value)) <= MAX_BIAS:  # NaN neither
            raise PromptError(f"logit_bias: found {value}, expected at most {MAX_BIAS:.0f}")
