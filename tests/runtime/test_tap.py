from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import DEMO, OPTIONS, RandomModel, last_states, plain, tapped, tokens_of

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.runtime import tap
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.pushing import control_vector
from mars_gguf.runtime.reading import logits
from mars_gguf.runtime.tap import LayerOutput, Rows

TEXT = "How do I make bread, and where do people keep it?"


def needs_the_c_callback() -> None:
    if tap._tap is None:
        pytest.skip("the C callback was not built: there was no compiler, or no Python.h")


@pytest.fixture(scope="module", params=[True, False], ids=["compiled", "python"])
def llama(request: pytest.FixtureRequest) -> SteeredLlama:
    if request.param:
        needs_the_c_callback()
    return tapped(DEMO, compiled=request.param, **OPTIONS)


def afresh(llama: SteeredLlama, tokens: list[int]) -> Rows:
    llama.reset()
    llama.eval(tokens)
    return logits(llama)


def cosine(a: Any, b: Any) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_tap_sees_every_block_once_with_a_row_for_each_token(llama: SteeredLlama) -> None:
    tokens, seen = tokens_of(llama, TEXT), []
    with llama.tap.visiting(range(llama.n_layer), lambda o: seen.append((o.layer, o.n_rows))):
        llama.reset()
        llama.eval(tokens)
    # The last block goes on with the rows that get logits.
    rows = [len(tokens)] * (llama.n_layer - 1) + [1]
    assert seen == list(enumerate(rows))


def test_reading_changes_nothing_and_a_tap_outlives_its_block_idle(llama: SteeredLlama) -> None:
    tokens, calls, reference = tokens_of(llama, TEXT), [], plain(DEMO)
    reference.eval(tokens)
    expected = logits(reference)
    with llama.tap.visiting(range(llama.n_layer), lambda o: calls.append(o.read())):
        assert np.array_equal(afresh(llama, tokens), expected)
    count = len(calls)
    assert np.array_equal(afresh(llama, tokens), expected)
    assert len(calls) == count


def test_names_of_layers_are_compared_exactly(tmp_path: Path) -> None:
    """With more than ten blocks, l_out-1 is a prefix of l_out-10."""
    path = RandomModel.llama(n_layer=12, n_embd=32).write(tmp_path / "deep.gguf")
    llama, seen = tapped(path, **OPTIONS), []
    with llama.tap.visiting([1, 12, 99], lambda o: seen.append(o.layer)):
        llama.eval(tokens_of(llama, TEXT))
    assert seen == [1]


def test_partial_reads_and_writes_touch_the_named_rows_alone(llama: SteeredLlama) -> None:
    def visit(output: LayerOutput) -> None:
        whole = output.read()
        assert np.array_equal(output.read(2, 5), whole[2:5])
        assert output.read(3, 3).shape == (0, output.n_embd)
        new = np.random.default_rng(0).normal(size=(2, output.n_embd)).astype(np.float32)
        output.write(1, new)
        output.write(output.n_rows, new[:0])
        expected = whole.copy()
        expected[1:3] = new
        assert np.array_equal(output.read(), expected)

    llama.reset()
    with llama.tap.visiting([2], visit):
        llama.eval(tokens_of(llama, TEXT))


def test_accesses_out_of_bounds_raise_and_do_not_reach_the_tensor(llama: SteeredLlama) -> None:
    tokens, refused = tokens_of(llama, TEXT), []
    expected = afresh(llama, tokens)

    def visit(output: LayerOutput) -> None:
        n, d = output.n_rows, output.n_embd
        row = np.zeros((1, d), np.float32)
        for start, stop in ((-1, 1), (0, n + 1), (3, 2), (n, n + 1), (10**9, 10**9 + 1)):
            with pytest.raises(IndexError):
                output.read(start, stop)
            refused.append((start, stop))
        for start, rows in (
            (-1, row), (n, row), (0, np.zeros((n + 1, d), np.float32)), (10**9, row),
            (0, row[0]), (0, row[:, 1:]), (0, row[None]),
        ):  # fmt: skip
            with pytest.raises(IndexError):
                output.write(start, rows)
            refused.append((start, rows))

    with llama.tap.visiting([2], visit):
        assert np.array_equal(afresh(llama, tokens), expected)
    assert len(refused) == 12


def test_a_write_reaches_all_later_nodes_like_a_control_vector(llama: SteeredLlama) -> None:
    tokens = tokens_of(llama, TEXT)
    plainly = afresh(llama, tokens)
    for layer in range(1, llama.n_layer):
        addition = np.random.default_rng(layer).normal(size=llama.n_embd()).astype(np.float32)

        def visit(output: LayerOutput, addition: Rows = addition) -> None:
            output.write(0, output.read() + addition)

        with llama.tap.visiting([layer], visit):
            written = afresh(llama, tokens)
        with control_vector(llama, layer, addition):
            assert np.array_equal(afresh(llama, tokens), written)
        assert not np.array_equal(written, plainly)
    assert np.array_equal(afresh(llama, tokens), plainly)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(KeyError("x"), SteeringError), (ModelError("x"), ModelError), (KeyboardInterrupt(),) * 2],
    ids=["any", "model", "interrupt"],
)
def test_what_a_visit_raises_is_raised_after_the_decode(
    llama: SteeredLlama, raised: BaseException, expected: Any
) -> None:
    tokens, calls = tokens_of(llama, TEXT), []
    plainly = afresh(llama, tokens)

    def visit(output: LayerOutput) -> None:
        calls.append(output.layer)
        raise raised

    kind = expected if isinstance(expected, type) else KeyboardInterrupt
    with pytest.raises(kind) as caught, llama.tap.visiting([1, 2, 3], visit):
        # The decode itself is not cut short.
        assert np.array_equal(afresh(llama, tokens), plainly)
    assert calls == [1]
    assert raised in (caught.value, caught.value.__cause__)
    assert np.array_equal(afresh(llama, tokens), plainly)


def test_a_failing_decode_is_not_hidden_by_the_tap(llama: SteeredLlama) -> None:
    idle = llama.tap.visiting([1], lambda o: None)
    with pytest.raises(ModelError, match="token id"), idle:
        afresh(llama, [llama.n_vocab() + 5])


def test_a_residual_stream_of_another_width_is_refused(
    llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.tap, "n_embd", llama.n_embd() - 1)
    narrow = llama.tap.visiting([1], lambda o: None)
    with pytest.raises(ModelError, match="cannot be steered"), narrow:
        afresh(llama, tokens_of(llama, TEXT))


@pytest.mark.slow
def test_states_are_those_of_an_independent_implementation(short_smollm2: str) -> None:
    """transformers' hidden_states[l + 1] on the same, dequantized, weights."""
    path = Path(short_smollm2)
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    llama = tapped(str(path), **OPTIONS)
    for text in (TEXT, "A kite."):
        tokens = tokens_of(llama, text)
        ours = last_states(llama, tokens)
        with torch.no_grad():
            theirs = reference(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        # The last entry of theirs is after the final norm.
        for layer in range(llama.n_layer - 1):
            state = theirs[layer + 1][0, -1].numpy()
            assert cosine(ours[layer], state) >= 0.999
            assert np.linalg.norm(ours[layer]) == pytest.approx(np.linalg.norm(state), rel=0.03)


def test_ctrl_c_in_a_callback_is_raised_after_a_whole_decode() -> None:
    llama = tapped(DEMO, **OPTIONS)
    tokens = tokens_of(llama, "How do I make bread?")
    expected = last_states(llama, tokens)
    seen: dict[int, Rows] = {}

    def visit(output: LayerOutput) -> None:
        signal.raise_signal(signal.SIGINT)
        if output.n_rows:
            seen[output.layer] = output.read(output.n_rows - 1)[0]

    llama.reset()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            llama.tap.visiting(range(llama.n_layer), visit),
        ):
            llama.eval(tokens)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen.keys() == expected.keys()
    assert all((seen[layer] == expected[layer]).all() for layer in seen)
