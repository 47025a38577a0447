"""The benchmark: its statistics, that it measures the real thing, and the command. No times."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp import llama_cpp as lib
from models import DEMO, DEMO_MMPROJ, OPTIONS, picture
from PIL import Image
from rich.console import Console

from mars_gguf.bench import extraction, runtime
from mars_gguf.bench.figures import (
    Aim,
    Figure,
    Line,
    Run,
    fit,
    interleaved,
    missed,
    ratios,
    summary,
)
from mars_gguf.bench.processes import Processes
from mars_gguf.bench.report import line_table
from mars_gguf.convert import extract as extract_module
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.prompts import Prompt
from mars_gguf.demo_model import FOLDER, VECTOR
from mars_gguf.vectors import read_vector, write_vector

COMMAND = [sys.executable, "-m", "mars_gguf.bench"]
QUICK = ["--demo", "-t1", "--repetitions", "1"]
READING: dict[str, Any] = {"n_threads": 1}
finite = st.floats(-1e6, 1e6)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)


# Statistics --------------------------------------------------------------------------------------


def test_runs_alternate_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []

    def run(name: str) -> Run:
        def count() -> float:
            order.append(name)
            return float(len(order))

        return count

    results = interleaved({"a": run("a"), "b": run("b")}, 4, warmup=1)
    assert "".join(order) == "baabbaabba"
    # What a pair holds comes from one round.
    assert results == {"a": [3, 6, 7, 10], "b": [4, 5, 8, 9]}


@given(st.lists(finite, min_size=1, max_size=40))
def test_median_and_quartiles_are_those_of_numpy(samples: list[float]) -> None:
    s = summary(samples)
    assert s.low <= s.median <= s.high
    rounding = 1e-12 * max(map(abs, samples))  # opposite samples cancel
    assert s.median == pytest.approx(np.median(samples), abs=rounding)
    quartiles = list(np.percentile(samples, [25, 75]))
    assert [s.low, s.high] == pytest.approx(quartiles, abs=rounding)


@given(finite, finite, st.lists(st.integers(-1000, 1000), min_size=3, max_size=9, unique=True))
def test_a_straight_line_is_found_again(slope: float, intercept: float, x: list[int]) -> None:
    found = fit(x, [slope * value + intercept for value in x])
    assert found.slope == pytest.approx(slope, rel=1e-6, abs=1e-6)
    bent = fit([0, 1, 2, 3], [0, 1, 1, 0])
    assert bent.r_squared == pytest.approx(0, abs=1e-9)


def test_a_line_that_hardly_rises_is_flat_and_its_r_squared_not_shown() -> None:
    rising = Line("prompts", "prompts", [1, 2, 3], [[1.0], [2.0], [3.0]])
    flat = Line("layers", "blocks", [1, 4, 8], [[0.047], [0.0468], [0.046]])
    assert (rising.flat, flat.flat) == (False, True)
    assert flat.as_json()["flat"] is True
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(line_table([rising, flat]))
    shown = console.export_text()
    (row,) = (line for line in shown.splitlines() if "blocks" in line)
    assert row.rstrip().endswith("flat") and "flat: from end to end" in shown
    (row,) = (line for line in shown.splitlines() if "3.000 s" in line)
    assert row.rstrip().endswith("1.000")


def figure(samples: list[float], aim: Aim | None, failure: str = "") -> Figure:
    return Figure("name", "title", "limit", aim, samples=samples, failure=failure)


def test_an_aim_is_missed_by_the_median_and_by_nothing_else() -> None:
    most, least = Aim(1.01), Aim(0.9, at_least=True)
    assert figure([1.0, 1.01, 9.0], most).verdict == "met"
    assert figure([1.0, 1.02, 1.02], most).verdict == "missed"
    assert figure([0.1, 0.9, 0.9], least).verdict == "met"
    assert figure([0.8, 0.89, 2.0], least).verdict == "missed"
    assert figure([1.0], most, failure="imports torch").verdict == "missed"
    assert figure([], most).verdict == "not measured"
    assert figure([5.0], None).verdict == "shown"
    every = [figure(samples, aim) for samples in ([], [1.0], [2.0]) for aim in (most, None)]
    assert missed(every) == [every[4]]
    assert ratios([2.0, 3.0], [1.0, 6.0]) == [2.0, 0.5]


# What is measured is the real thing --------------------------------------------------------------


def test_the_extraction_that_is_timed_reads_what_a_conversion_reads() -> None:
    given = extraction.material(True, images=True)
    prompts = [*extraction.text_prompts(given)[:3], *extraction.picture_prompts(given)[:2]]
    assert len({p.images[0].tobytes() for p in extraction.picture_prompts(given)}) == 16
    extractor = GgufExtractor(DEMO, DEMO_MMPROJ, **READING)
    rows = extraction.extract(extractor, prompts)
    expected = np.empty((5, extractor.n_layer, extractor.n_embd), np.float32)
    for indices, session in extractor.sessions(prompts):
        expected[indices] = session.observe()[0]
    assert rows.shape == (5, extractor.n_layer, extractor.n_embd)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(extraction.extract(extractor, prompts, 2), expected[:, :2])


def test_the_limit_decodes_the_same_prompts_without_a_callback() -> None:
    given = extraction.material(True, images=True)
    prompts = [*extraction.text_prompts(given)[:3], *extraction.picture_prompts(given)[:2]]
    extractor = GgufExtractor(DEMO, DEMO_MMPROJ, **READING)
    prefill = extraction.Prefill(DEMO, DEMO_MMPROJ, **READING)
    assert extractor.llama.context_params.cb_eval
    assert not prefill.llama.context_params.cb_eval
    for _ in range(2):  # a repetition does the same work
        (order, observed), *_ = ((i, s.observe()[1]) for i, s in extractor.sessions(prompts))
        group = prefill.group([prompts[i] for i in order])
        assert prefill.run([group]) > 0
        rows = [lib.llama_get_logits_ith(prefill.llama.ctx, i - len(prompts)) for i in range(5)]
        logits = np.stack([np.ctypeslib.as_array(r, (prefill.llama.n_vocab(),)) for r in rows])
        cosine = (logits * observed).sum(1) / (
            np.linalg.norm(logits, axis=1) * np.linalg.norm(observed, axis=1)
        )
        assert cosine.min() > 0.998
        saved = sum(map(prefill.length, prompts)) - prefill.positions
        assert saved > 0  # what the prompts begin with is decoded once
        assert saved % (len(prompts) - 1) == 0
        prefill.release([group])


def test_each_repetition_decodes_as_many_tokens_and_so_does_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = extraction.text_prompts(extraction.material(True, images=False))[:24]
    extractor, prefill = GgufExtractor(DEMO, **READING), extraction.Prefill(DEMO, **READING)
    groups = [prefill.group([prompts[i] for i in part]) for part, _ in extractor.sessions(prompts)]
    assert len(groups) > 1
    decoded: list[int] = []
    decode = extractor._decode_batch

    def counting(batch: Any) -> None:
        decoded.append(batch.n_tokens)
        decode(batch)

    monkeypatch.setattr(extractor, "_decode_batch", counting)
    found = set()
    for _ in range(2):
        decoded.clear()
        extraction.extract(extractor, prompts)
        prefill.run(groups)
        found |= {sum(decoded), prefill.positions}
    assert len(found) == 1


def test_a_picture_is_encoded_once_and_read_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = picture(1), picture(2)
    prompts = [Prompt("What is it?", (a, a, b, a)), Prompt("What is this?", (b,))]
    extractor = GgufExtractor(DEMO, DEMO_MMPROJ, **READING)
    encoded: list[int] = []
    encode = extract_module.mtmd_cpp.mtmd_encode_chunk

    def counting(*arguments: Any) -> int:
        encoded.append(1)
        return int(encode(*arguments))

    monkeypatch.setattr(extract_module.mtmd_cpp, "mtmd_encode_chunk", counting)
    first = extraction.extract(extractor, prompts)
    assert len(encoded) == 2
    for _, session in extractor.sessions(prompts):
        np.testing.assert_array_equal(session.observe()[0], first)
    assert len(encoded) == 2
    other = [Prompt("What is it?", (a, a, Image.new("RGB", (80, 80)), a)), prompts[1]]
    assert np.abs(extraction.extract(extractor, other)[0] - first[0]).max() > 1e-3
    monkeypatch.setattr(extract_module, "MAX_EMBEDDINGS", 1)
    encoded.clear()
    np.testing.assert_array_equal(extraction.extract(extractor, prompts), first)
    assert len(encoded) == 5
    assert not extractor._embeddings


def test_steered_and_plain_do_the_work_that_the_figures_name() -> None:
    options = {key: value for key, value in OPTIONS.items() if key != "verbose"}
    harmless = extraction.material(True, images=False).contrast.harmless
    measured = {
        f.name: f for f in runtime.measure(DEMO, str(VECTOR), harmless, options, 2, runtime.NAMES)
    }
    assert list(measured) == runtime.NAMES
    for f in measured.values():
        assert len(f.samples) == 2
        assert all(len(values) == 2 for values in f.values.values())
    v = measured["first-token-cvec"].values
    limit = [a + b for a, b in zip(v["plain"], v["decode"], strict=True)]
    assert measured["first-token-cvec"].samples == ratios(v["steered"], limit)
    for name, compared in (("generation", "steered"), ("generation-control", "again")):
        v = measured[name].values
        assert measured[name].samples == ratios(v["plain"], v[compared])
    for name in ("first-token-control", "generation-control"):
        assert measured[name].verdict == "shown"


def test_a_sample_is_the_median_of_as_many_interleaved_runs_as_last_long_enough() -> None:
    bench, figure, order = runtime._Bench([1], None), runtime.figures()[0], list[str]()

    def run(name: str, seconds: list[float]) -> Run:
        left = iter(seconds)

        def timed() -> float:
            order.append(name)
            return next(left)

        return timed

    a = run("plain", [runtime.SAMPLE_SECONDS / 2.5, 1, 2, 9, 4, 5, 6])
    b = run("steered", [7, 1, 3, 8, 8, 2])
    for bench.turn in (1, 2):
        bench._sample(figure, {"plain": a, "steered": b})
    assert figure.values == {"plain": [2, 5], "steered": [3, 8]}
    there = ["plain", "steered", "steered", "plain", "plain", "steered"]
    assert order == ["plain", *there, *there[::-1]]  # the first says how many are needed


# The command -------------------------------------------------------------------------------------


def test_every_figure_is_in_the_table_and_in_the_json(tmp_path: Path) -> None:
    file, image = tmp_path / "bench.json", tmp_path / "lines.png"
    names = [
        "first-token", "first-token-inline", "extraction-text", "extraction-images",
        "conversion-cvector", "conversion-transformers", "memory-runtime", "import",
    ]  # fmt: skip
    done = bench(
        *QUICK, "--only", ",".join([*names, "layers", "images"]),
        "--json", str(file), "--plot", str(image),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    saved = json.loads(file.read_text())
    figures = {f["name"]: f for f in saved["figures"]}
    assert set(figures) == set(names)
    for name, f in figures.items():
        assert name in done.stdout
        compared = name.startswith("conversion")
        assert (f["verdict"] == "not measured") == compared
        assert len(f["samples"]) == (0 if compared else 1)
    assert "not measured" in done.stdout
    assert "torch and transformers are not imported" in figures["import"]["note"]
    assert figures["memory-runtime"]["values"]["plain"][0] > 10
    assert [line["name"] for line in saved["lines"]] == ["layers", "images"]
    assert all(len(line["seconds"]) == len(line["x"]) > 1 for line in saved["lines"])
    assert saved["model"]["files"].keys() == {
        "text-Q4_K_M.gguf", "mmproj-f16.gguf", VECTOR.name
    }  # fmt: skip
    assert saved["machine"]["cores"] >= 1 and saved["versions"]["llama-cpp-python"]
    assert image.read_bytes().startswith(b"\x89PNG")


def generator(folder: Path, before: str) -> str:
    """A program with the arguments of cvector-generator."""
    program = folder / "generator"
    program.write_text(f'#!/bin/sh\n{before}\nfor output; do :; done\ntouch "$output"\n')
    program.chmod(0o755)
    return str(program)


def test_conversions_of_other_modalities_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = read_vector(VECTOR)
    keep = {"text": full.geometry.shifts["text"]}, {"text": full.geometry.spreads["text"]}
    geometry = replace(full.geometry, shifts=keep[0], spreads=keep[1])
    vectors = {"theirs.gguf": replace(full, geometry=geometry), "ours.gguf": full}

    def convert(self: Processes, command: list[str], output: Path) -> float:
        write_vector(vectors[output.name], output)
        return 3.0 if output.name == "theirs.gguf" else 1.0

    monkeypatch.setattr(Processes, "_seconds", convert)
    given = extraction.material(True, images=False)
    options = {"n_threads": 1, "n_gpu_layers": 0}
    bench = Processes(DEMO, DEMO_MMPROJ, str(VECTOR), given, options, transformers=str(tmp_path))
    (f,) = bench.measure(2, ["conversion-transformers"])
    assert f.verdict == "not measured"
    assert "transformers measured text, ours text, image, video" in f.absent
    vectors["theirs.gguf"] = full
    (f,) = bench.measure(2, ["conversion-transformers"])
    assert f.samples == [3.0, 3.0] and "(text, image, video)" in f.note


def test_a_conversion_can_be_timed_again_and_again(tmp_path: Path) -> None:
    given = extraction.material(True, images=False)
    bench = Processes(DEMO, None, str(VECTOR), given, {"n_threads": 1, "n_gpu_layers": 0})
    output = tmp_path / "ours.gguf"
    harmful, harmless = (str(FOLDER / f"{name}.jsonl") for name in ("harmful", "harmless"))
    command = [
        sys.executable, "-m", "mars_gguf.convert", DEMO, "--harmful", harmful, "--harmless",
        harmless, "--modality", "text", "-q", "--no-plot", "-o", str(output),
    ]  # fmt: skip
    assert all(bench._seconds(command, output) > 0 for _ in range(2))


def test_check_fails_when_an_aim_is_missed_and_only_then(tmp_path: Path) -> None:
    only = ["--only", "conversion-cvector", "--cvector-generator"]
    at_once = bench(*QUICK, "--check", *only, generator(tmp_path, "test -s ${14} || exit 3"))
    assert at_once.returncode == 1, at_once.stderr
    assert "aims missed: conversion-cvector" in at_once.stderr
    assert "missed" in at_once.stdout
    unmeasured = bench(*QUICK, "--check", "--only", "conversion-cvector,conversion-transformers")
    assert unmeasured.returncode == 0, unmeasured.stderr
    failing = bench(*QUICK, *only, generator(tmp_path, "echo no such luck >&2; exit 3"))
    assert failing.returncode == 2
    assert "returned 3: no such luck" in failing.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--demo", "--only", "speed"], "no figure speed"),
        (["--demo", "--repetitions", "0"], "expected 1 to"),
        (["--demo", "--json", "/no/such/folder/b.json"], "no such folder"),
        (["--demo", "--only", "import", "--plot", "b.png"], "name one in --only"),
        (["--demo", "--cvector-generator", "nowhere"], "nowhere: not a program"),
        (["--demo", "--transformers", "nowhere"], "no config.json there"),
        (["-m", DEMO], "no vector"),
        (["-m", DEMO, "--vector", DEMO], "expected"),
        (["-m", "none.gguf", "--vector", str(VECTOR)], "none.gguf: no such file"),
    ],
)
def test_bad_input_is_a_clear_error(arguments: list[str], said: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
