"""Sessions of the GGUF extractor, steered for one token."""

from __future__ import annotations

from mars_gguf.convert.extract_gguf import GgufSession
from mars_gguf.convert.prompts import Rows


def pushed(session: GgufSession, layer: int, additions: Rows) -> Rows:
    """Logits of the first token, with ``additions`` at the last token of each prompt."""
    with session._pushing([(layer, additions)]):
        return session.extractor.decoder.last_tokens(session.prompts)
