"""What is seen of prompts, with a model of numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from toys import ANSWER, REFUSAL, Toy

from mars_gguf.convert.extractor import Observation, Observations, observe
from mars_gguf.convert.prompts import Prompt, Rows

PROMPTS = [Prompt(f"harmful {i}") for i in range(12)]


class Kept(dict[str, Observation]):
    """A store in memory."""

    def find(self, keys: Sequence[str]) -> dict[str, Observation]:
        return {key: self[key] for key in keys if key in self}

    def keep(self, seen: Mapping[str, Observation]) -> None:
        self.update(seen)


def nobody(n: int) -> None:
    """Is told how far it is."""


def test_states_tokens_and_replies_stand_in_the_order_of_the_prompts() -> None:
    toy, steps = Toy({"harmful": 0.5}), list[int]()
    seen = observe(toy, PROMPTS, steps.append, n_tokens=4)
    np.testing.assert_array_equal(seen.states, [toy.state(p) for p in PROMPTS])
    assert seen.replies == [toy.reply(p) for p in PROMPTS]
    assert {reply.text for reply in seen.replies} == {REFUSAL, ANSWER}
    assert seen.tokens.tolist() == [reply.token for reply in seen.replies]
    assert sum(steps) == len(PROMPTS)
    assert observe(toy, PROMPTS, nobody).replies == []


def test_what_a_reader_makes_of_states_is_kept_instead_of_them() -> None:
    def read(prompts: Sequence[Prompt], states: Rows) -> Rows:
        return states.sum((1, 2)) + [float(p.text.split()[1]) for p in prompts]

    toy = Toy({})
    seen = observe(toy, PROMPTS, nobody, read=read)
    expected = [toy.state(p).sum() + i for i, p in enumerate(PROMPTS)]
    np.testing.assert_allclose(seen.states, expected, rtol=1e-5)


def test_what_a_store_holds_is_not_observed_again_but_longer_replies_and_other_stages_are() -> None:
    toy, store = Toy({"harmful": 0.5}), Kept()
    observe(toy, PROMPTS[:5], nobody, store=store)
    first = observe(toy, PROMPTS, nobody, store=store)
    assert [p.text for p in toy.log].count("harmful 0") == 1 and len(toy.log) == len(PROMPTS)
    np.testing.assert_array_equal(first.states, observe(Toy({}), PROMPTS, nobody).states)
    observe(toy, PROMPTS, nobody, n_tokens=8, store=store)
    assert len(toy.log) == 2 * len(PROMPTS)
    observe(toy, PROMPTS, nobody, stage="of another reader", store=store)
    assert len(toy.log) == 3 * len(PROMPTS)


def test_observations_are_chosen_and_divided_with_all_that_belongs_to_them() -> None:
    seen = observe(Toy({"harmful": 0.5}), PROMPTS, nobody, n_tokens=4)
    even = seen.where(np.arange(len(PROMPTS)) % 2 == 0)
    assert even.prompts == PROMPTS[::2] and even.replies == seen.replies[::2]
    parts = seen.parts([3, 0, 9])
    assert [len(part.prompts) for part in parts] == [3, 0, 9]
    joined = Observations(
        [p for part in parts for p in part.prompts],
        np.concatenate([part.states for part in parts]),
        np.concatenate([part.tokens for part in parts]),
        [reply for part in parts for reply in part.replies],
    )
    assert joined.prompts == seen.prompts and joined.replies == seen.replies
    np.testing.assert_array_equal(joined.states, seen.states)
