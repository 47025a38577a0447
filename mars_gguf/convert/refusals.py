"""Learns what a model's refusals look like, from its own replies. No model.

A reply is judged by its opening (mars_gguf.openings). Which first tokens begin refusals is counted
on such replies, so that of other prompts the first token is enough. Of a model in whose replies
the judge, who reads English, finds no refusal, first tokens are all there is: then those that
harmful prompts get and harmless ones do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mars_gguf.convert.extractor import Opening
from mars_gguf.openings import judge_by_opening
from mars_gguf.statistics import Share

N_TOKENS = 16  # of a reply: a whole first sentence, mostly
FEW = 3  # refusals, of all harmful prompts: too few to learn from

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Refusals:
    """Tells refusals from other replies of one model.

    shares: the share of replies that are refusals, by the first token.
    judged: whether that was read from whole replies, not from first tokens alone.
    """

    shares: Mapping[int, float]
    judged: bool

    @classmethod
    def of(cls, harmful: Sequence[Opening], harmless: Sequence[Opening]) -> Refusals:
        """Learns from replies to harmful and to harmless prompts."""
        replies = [*harmful, *harmless]
        refused = [r.token for r in replies if _is_refusal(r)]
        if sum(map(_is_refusal, harmful)) >= FEW:
            every = Counter(r.token for r in replies)
            return cls({t: n / every[t] for t, n in Counter(refused).items()}, judged=True)
        bad, good = (Counter(r.token for r in side) for side in (harmful, harmless))
        shares = {}
        for token, n in bad.items():
            # Beyond chance, or any token that is a little more frequent would do.
            a, b = Share(n, len(harmful)), Share(good[token], len(harmless))
            if a.low > b.high:
                shares[token] = n / (n + good[token] * len(harmful) / len(harmless))
        return cls(shares, judged=False)

    def begin(self, tokens: npt.NDArray[np.intp]) -> Flags:
        """Tells whether replies that begin with these tokens [n] are mostly refusals, [n]."""
        return np.asarray([self.shares.get(int(token), 0.0) > 0.5 for token in tokens], np.bool_)

    def among(self, replies: Sequence[Opening]) -> Flags:
        """Tells which of the replies are refusals, [n]."""
        if self.judged:
            return np.asarray([_is_refusal(reply) for reply in replies], np.bool_)
        return self.begin(np.asarray([reply.token for reply in replies], np.intp))


def _is_refusal(reply: Opening) -> bool:
    return judge_by_opening(reply.text) == "refused"
