"""One model through both extractors: they agree, and the command says how much."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import checkpoints  # skips these tests without torch and transformers
import llama_cpp
import pytest
from commands import convert as main
from models import DEMO, DEMO_MMPROJ, OPTIONS, user

from mars_gguf.convert.choices import Calibration, CheckpointOptions
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.extract_transformers import TransformersExtractor
from mars_gguf.convert.parity import Parity, append_to_card, compare
from mars_gguf.convert.parity import main as compare_models
from mars_gguf.convert.prompt_sets import PromptSets
from mars_gguf.convert.prompts import ContrastPrompts, builtin_contrast
from mars_gguf.demo_model import FOLDER
from mars_gguf.errors import MarsError
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.vectors import read_vector, write_vector

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def real(short_smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(transformers directory, F32 GGUF) of SmolLM2's first blocks, both from its Q4_1 file."""
    folder = tmp_path_factory.mktemp("smollm2")
    checkpoint = checkpoints.from_gguf(Path(short_smollm2), folder / "checkpoint")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    parameters.allow_requantize = True
    gguf = folder / "f32.gguf"
    code = llama_cpp.llama_model_quantize(
        short_smollm2.encode(), str(gguf).encode(), ctypes.byref(parameters)
    )
    assert code == 0
    yield checkpoint, str(gguf)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def parity(real: tuple[str, str]) -> Parity:
    pairs = builtin_contrast()
    contrast = ContrastPrompts(pairs.harmful[::12], pairs.harmless[::12])
    a = GgufExtractor(real[1], n_threads=2, n_ctx=2048)
    b = TransformersExtractor(real[0], CheckpointOptions(batch_size=32))
    assert not a.fingerprint.differences(b.fingerprint)
    assert a.fingerprint.tokenizer_sha256 == b.fingerprint.tokenizer_sha256
    assert a.fingerprint.chat_template_sha256 == b.fingerprint.chat_template_sha256
    assert a.fingerprint.architecture == b.fingerprint.architecture == "llama"
    names = ("llama.cpp F32", "transformers float32")
    calibration = Calibration(layers=(4, 5))
    result = compare(a, b, PromptSets(contrast), calibration, names=names, n_prompts=8)
    a.close()
    b.close()
    return result


def test_both_paths_measure_the_same_of_real_weights(parity: Parity) -> None:
    assert parity.cosine["text"].shape == (8, 8)
    assert parity.cosine["text"].min() >= 0.9999
    a, b = parity.layers
    assert a == b
    assert abs(parity.t[0] - parity.t[1])[:, a].max() < 0.03
    x, y = (c.vector.geometry for c in parity.measurements)
    assert x.direction @ y.direction / (x.distance * y.distance) > 0.9999
    assert x.spreads["text"] == pytest.approx(y.spreads["text"], rel=0.02)
    assert x.thresholds == pytest.approx(y.thresholds, abs=0.03)


def test_the_parity_table_is_printed_and_goes_into_a_card(parity: Parity, tmp_path: Path) -> None:
    table = parity.table()
    rows = [line for line in table.splitlines() if line.startswith("| ") and "1.000000" in line]
    assert len(rows) == 8
    assert f"| selected block | {parity.layers[0]} | {parity.layers[1]} |" in table
    card = tmp_path / "card.md"
    card.write_text("# card\n\ntext\n")
    append_to_card(card, "## Parity: an older one\n\n| 1 |\n")
    append_to_card(card, table)
    assert card.read_text() == f"# card\n\ntext\n\n{table}"


def test_a_vector_from_float32_steers_the_quantized_model(
    parity: Parity, short_smollm2: str
) -> None:
    vector = parity.measurements[1].vector
    llama = SteeredLlama(short_smollm2, vector=vector, **OPTIONS)
    llama.create_chat_completion([user(builtin_contrast().harmful[1])], max_tokens=1)
    assert llama.last_steering is not None
    assert llama.last_steering.layer == vector.layer
    assert abs(llama.last_steering.t) < 3
    llama.close()


def test_two_models_are_not_compared(real: tuple[str, str], small_llama: str) -> None:
    a, b = GgufExtractor(small_llama), TransformersExtractor(real[0])
    with pytest.raises(MarsError, match=r"a and b are two models, expected one:\n.*n_layer: 3 and"):
        compare(a, b, PromptSets(builtin_contrast()), Calibration())
    a.close()


@pytest.fixture(scope="module")
def dequantized(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A transformers directory of the shipped model's weights."""
    return checkpoints.from_gguf(Path(DEMO), tmp_path_factory.mktemp("demo"))


def test_the_parity_command_prints_a_table_and_the_next_conversion_keeps_it_in_the_card(
    dequantized: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, card = tmp_path / "v.gguf", tmp_path / "v.md"
    sets = []
    for name in ("harmful", "harmless"):
        lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines[:48]), encoding="utf-8")
        sets += [f"--{name}", str(tmp_path / f"{name}.jsonl")]
    sets += ["--layers", "5-6"]
    again = [DEMO, "-o", str(output), "-q", "--no-plot", "-t", "1", *sets]
    main(again)
    before = card.read_text()
    capsys.readouterr()
    options = ["--card", str(card), "--pairs", "40", "-t", "1", "-q", *sets]
    compare_models([DEMO, dequantized, *options])
    table = capsys.readouterr().out.removesuffix("\n")
    assert table.startswith("## Parity: llama.cpp Q4_K_M and transformers float32\n")
    cosines = [float(row.split(" | ")[1]) for row in table.splitlines() if "**" in row]
    assert cosines and min(cosines) > 0.95
    assert card.read_text() == f"{before}\n{table}"
    main(again)
    assert card.read_text() == f"{before}\n{table}"
    write_vector(replace(read_vector(output), layer=1), output)  # of another conversion
    main(again)
    assert card.read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--card", "missing.md"], "missing.md: cannot be read as a card"),
        (["--mmproj", DEMO_MMPROJ, "--probes", "16"], "this model sees no pictures"),
        (["--neutral-media", "pictures"], "--neutral-media: without --mmproj text alone"),
        (["--harmful", "a"], "--harmful and --harmless go together"),
        (["--layers", "all"], "--layers: found 'all'"),
        (["--reasoning", "answer"], "--reasoning answer: checkpoints are read without thoughts"),
    ],
)
def test_what_parity_cannot_do_is_said_before_measuring(
    options: list[str], message: str, dequantized: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        compare_models([DEMO, dequantized, "-q", *options])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
