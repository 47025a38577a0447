"""Sampling arguments that llama.cpp would end the process over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import PromptError
from mars_gguf.runtime.compat import suppress_stdout_stderr

MAX_GRAMMAR = 32 << 10  # characters; llama.cpp unrolls {1000}, to 260 MB at this length
MAX_PARENTHESES = 1000  # llama.cpp's parser recurses at each; 20,000 overflow its stack
MAX_BIAS = 1e6  # of a logit; if all that a grammar allows became -inf, llama.cpp would abort
# Beyond these logits become infinite or NaN in float32; under a grammar llama.cpp then aborts.
BOUNDS = {
    "temperature": (1e-6, 1e6),
    "repeat_penalty": (1e-3, 1e3),
    "frequency_penalty": (-1e3, 1e3),
    "presence_penalty": (-1e3, 1e3),
}


def looking_at_arguments(init_sampler: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of ``Llama._init_sampler``, where the arguments of completions, `generate` and
    `sample` meet, and grammars of every origin (text, schemas, tools): raises PromptError for what
    llama.cpp would end the process over."""

    @wraps(init_sampler)
    def looking(llama: Llama, *args: Any, grammar: Any = None, **kwargs: Any) -> Any:
        for name, (least, most) in BOUNDS.items():
            tempers = name == "temperature"
            value = kwargs.get("temp" if tempers else name)
            untempered = tempers and value is not None and value <= 0
            if value is not None and not untempered and not least <= value <= most:  # NaN neither
                raise PromptError(f"{name}: found {value}, expected {least:g} to {most:g}")
        if grammar is not None:
            require_grammar(llama, grammar._grammar)
        return init_sampler(llama, *args, grammar=grammar, **kwargs)

    return looking


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


def require_bias(llama: Llama, *, logit_bias: Mapping[Any, float] | None = None, **_: Any) -> None:
    """Raise PromptError for arguments of a completion with a ``logit_bias`` of what is no token, or
    one that is no sensible number."""
    n_vocab = llama.n_vocab()
    for key, value in (logit_bias or {}).items():
        token = str(key)
        known = token.isascii() and token.isdigit() and len(token) < 20 and int(token) < n_vocab
        if not known:
            raise PromptError(
                f"logit_bias: found the key {token[:20]!r}, expected token ids from 0 to "
                f"{n_vocab - 1}, or text with logit_bias_type 'tokens'"
            )
        if not abs(value) <= MAX_BIAS:  # NaN neither
            raise PromptError(f"logit_bias: found {value}, expected at most {MAX_BIAS:.0f}")
