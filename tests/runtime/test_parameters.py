"""Loading: its progress, and the parameters that Llama has no keyword for."""

from __future__ import annotations

import numpy as np
import pytest
from llama_cpp import llama_cpp as lib
from models import DEMO, OPTIONS, last_states, tapped, tokens_of

from mars_gguf.errors import ModelError
from mars_gguf.runtime.parameters import renew_context
from mars_gguf.runtime.reading import logits


def test_loading_tells_its_progress_and_can_be_interrupted() -> None:
    shares: list[float] = []
    tapped(DEMO, progress=shares.append, **OPTIONS).close()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0

    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tapped(DEMO, progress=interrupt, **OPTIONS)


def test_fields_without_a_keyword_reach_the_context() -> None:
    given = {"n_seq_max": 2, "kv_unified": True}
    llama = tapped(DEMO, context_overrides=given, **OPTIONS)
    assert lib.llama_n_seq_max(llama.ctx) == 2
    assert lib.llama_n_ctx_seq(llama.ctx) == llama.n_ctx() == 512  # not half of it for each
    llama.close()


def test_a_renewed_context_is_empty_and_as_good_as_a_new_one() -> None:
    llama, fresh = tapped(DEMO, **OPTIONS), tapped(DEMO, **OPTIONS | {"n_ctx": 256})
    tokens = tokens_of(llama, "How do I make bread?")
    llama.eval(tokens)
    renew_context(llama, n_ctx=256)
    assert (llama.n_tokens, llama.n_ctx(), len(llama.input_ids)) == (0, 256, 256)
    assert last_states(llama, tokens).keys() == last_states(fresh, tokens).keys()
    assert np.array_equal(logits(llama), logits(fresh))
    for each in (llama, fresh):
        each.close()


def test_a_context_that_cannot_be_made_anew_is_an_error() -> None:
    llama = tapped(DEMO, **OPTIONS)
    llama.lora_path = "adapter.gguf"
    with pytest.raises(ModelError, match="LoRA adapter is lost .*: give n_ubatch 64 or more"):
        renew_context(llama, n_ubatch=64)
    llama.lora_path = None
    with pytest.raises(ModelError, match="could not make a context with n_seq_max 100000"):
        renew_context(llama, n_seq_max=100000)
    llama.close()
