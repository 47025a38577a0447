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
from models import DEMO, DEMO_MMPROJ, OPTIONS, mmproj_of, picture, vector
from rich.console import Console

from mars_gguf.bench import conversion, extraction, runtime
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
from mars_gguf.bench.subject import Subject, material
from mars_gguf.convert.choices import Calibration
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.prompt_sets import gather
from mars_gguf.convert.prompts import Prompt
from mars_gguf.convert.splits import split_prompts
from mars_gguf.demo_model import VECTOR
from mars_gguf.runtime import mtmd
from mars_gguf.runtime.tap import Tap
from mars_gguf.vectors import read_vector, write_vector

COMMAND = [sys.executable, "-m", "mars_gguf.bench"]
QUICK = ["--demo", "-t1", "--repetitions", "1"]
READING: dict[str, Any] = {"n_threads": 1}
finite = st.floats(-1e6, 1e6)


def subject(mmproj: str | None = None, **options: Any) -> Subject:
    given = material(True, images=mmproj is not None)
    return Subject(DEMO, mmproj, str(VECTOR), given, OPTIONS | {"n_gpu_layers": 0} | options)


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
    given = material(True, images=True)
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
    given = material(True, images=True)
    prompts = [*extraction.text_prompts(given)[:3], *extraction.picture_prompts(given)[:2]]
    extractor = GgufExtractor(DEMO, DEMO_MMPROJ, **READING)
    limit = extraction.Limit(DEMO, DEMO_MMPROJ, **READING)
    assert extractor.llama.context_params.cb_eval
    assert not limit.llama.context_params.cb_eval
    ((order, observed),) = ((i, s.observe()[1]) for i, s in extractor.sessions(prompts))
    assert len(order) == len(prompts)
    for _ in range(2):  # a repetition does the same work
        before = limit.timed.seconds
        assert limit.run(prompts) > limit.timed.seconds - before > 0  # encoding counts
        rows = [lib.llama_get_logits_ith(limit.llama.ctx, i - len(prompts)) for i in range(5)]
        logits = np.stack([np.ctypeslib.as_array(r, (limit.llama.n_vocab(),)) for r in rows])
        cosine = (logits * observed).sum(1) / (
            np.linalg.norm(logits, axis=1) * np.linalg.norm(observed, axis=1)
        )
        assert cosine.min() > 0.998
        saved = sum(map(limit.length, prompts)) - limit.timed.n_tokens
        assert saved > 0  # what the prompts begin with is decoded once
        assert saved % (len(prompts) - 1) == 0


def test_each_repetition_decodes_as_many_tokens_and_so_does_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = extraction.text_prompts(material(True, images=False))[:48]
    extractor, limit = GgufExtractor(DEMO, **READING), extraction.Limit(DEMO, **READING)
    assert len(list(extractor.sessions(prompts))) > 1
    decoded: list[int] = []
    decode = extractor.decoder.decode

    def counting(batch: Any) -> None:
        decoded.append(batch.n_tokens)
        decode(batch)

    monkeypatch.setattr(extractor.decoder, "decode", counting)
    found = set()
    for _ in range(2):
        decoded.clear()
        extraction.extract(extractor, prompts)
        limit.run(prompts)
        found |= {sum(decoded), limit.timed.n_tokens}
    assert len(found) == 1


def test_a_conversion_is_held_against_the_prefill_of_all_its_prompts() -> None:
    given = subject(DEMO_MMPROJ)
    prompts = replace(given.given.prompts, quick=True)
    figure = conversion.compared(given, prompts, Calibration(layers=(6, 7)))
    (ours,), (theirs,) = figure.values["conversion"], figure.values["llama.cpp"]
    assert figure.samples == [ours / theirs]
    assert ours > theirs > 0
    sets = gather(prompts, 0, sees=True)
    splits = split_prompts(sets.contrast, sets.media, sets.contexts, 0)
    assert f"once, {len(splits)} prompts" in figure.note


def test_a_picture_that_is_decoded_alone_is_encoded_once_and_counted_once(mrope: str) -> None:
    limit = extraction.Limit(mrope, mmproj_of(mrope), **READING)
    prompt = Prompt("What is it?", (picture(1), picture(2)))
    projector = limit.llama.projector
    assert projector is not None
    before = limit.timed.seconds, projector.seconds
    total = limit.run([prompt])
    parts = limit.timed.seconds - before[0], projector.seconds - before[1]
    assert total == pytest.approx(sum(parts)) and min(parts) > 0
    assert limit.timed.n_tokens == limit.length(prompt)


def test_each_repetition_encodes_a_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = picture(1), picture(2)
    prompts = [Prompt("What is it?", (a, a, b, a)), Prompt("What is this?", (b,))]
    extractor = GgufExtractor(DEMO, DEMO_MMPROJ, **READING)
    encoded: list[int] = []
    encode = mtmd.mtmd_cpp.mtmd_encode_chunk

    def counting(*arguments: Any) -> int:
        encoded.append(1)
        return int(encode(*arguments))

    monkeypatch.setattr(mtmd.mtmd_cpp, "mtmd_encode_chunk", counting)
    first = extraction.extract(extractor, prompts)
    assert len(encoded) == 2
    np.testing.assert_array_equal(extraction.extract(extractor, prompts), first)
    assert len(encoded) == 4


def test_steered_and_plain_do_the_work_that_the_figures_name() -> None:
    measured = {f.name: f for f in runtime.measure(subject(), 2, runtime.NAMES)}
    assert list(measured) == runtime.NAMES
    for name, f in measured.items():
        if runtime.CASES[name].model == "C" and not Tap().compiled:
            assert "not built" in f.absent
            continue
        assert len(f.samples) == 2
        plain, compared = f.values.values()
        speed = name.startswith("generation")
        assert f.samples == (ratios(plain, compared) if speed else ratios(compared, plain))
        # All figures of one kind are of the same runs of the plain model.
        kind = "generation-control" if speed else "first-token-control"
        assert plain == measured[kind].values["plain"]
    for name in ("first-token-control", "generation-python", "first-token-cvec"):
        assert measured[name].aim is None


def test_each_model_is_asked_what_its_figure_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any, int, int]] = []

    def reply(llama: Any, tokens: list[int], n_reply: int) -> tuple[float, float]:
        steered = isinstance(llama, runtime.SteeredLlama)
        seconds = found(llama, tokens, n_reply)
        kind = ("C" if llama.tap.compiled else "Python") if steered else "plain"
        way = llama.last_steering.way if steered else None
        asked.append((kind, way, len(tokens), n_reply))
        return seconds

    found = runtime._reply
    monkeypatch.setattr(runtime, "_reply", reply)
    runs: list[tuple[str, Any]] = [("plain", None), ("Python", None)]
    if Tap().compiled:
        runs += [("C", None), ("C", "inline"), ("C", "cvec")]
    taken = runtime._take(subject(), [1, 5, 6, 7], 3, runs, 2)
    assert all(len(seconds) == 2 for seconds in taken.values())
    models = len({kind for kind, _ in runs})
    expected = [(kind, way, 4, 0 if way else 3) for kind, way in runs]
    there_and_back = [*expected, *expected[::-1]]
    assert asked[models:][: len(there_and_back)] == there_and_back
    assert asked[-len(there_and_back) :] == [*expected[::-1], *expected]


def test_a_memory_that_cannot_rewind_has_no_cvec(hybrid: str, tmp_path: Path) -> None:
    write_vector(vector(hybrid), tmp_path / "v.gguf")
    given = replace(subject(), model=hybrid, vector=str(tmp_path / "v.gguf"))
    cvec, python = runtime.measure(given, 1, ["first-token-cvec", "first-token-python"])[::-1]
    assert "rewound" in cvec.absent or not Tap().compiled
    assert len(python.samples) == 1


def test_options_reach_every_kind_of_model() -> None:
    given = subject(
        template="chatml", chat_template_kwargs={"a": 1}, reasoning="off", way="auto", force=True,
        n_ubatch=64,
    )  # fmt: skip
    assert given.plain == OPTIONS | {"n_gpu_layers": 0, "n_ubatch": 64}
    assert given.reading == {
        "chat_handler": "chatml", "chat_template_kwargs": {"a": 1}, "n_threads": 1,
        "n_gpu_layers": 0, "reasoning": "off",
    }  # fmt: skip
    convert = Processes(given).convert_arguments(Path("v.gguf"))
    assert convert[convert.index("--chat-handler") + 1] == "chatml"
    assert json.loads(convert[convert.index("--chat-template-kwargs") + 1]) == {"a": 1}
    assert convert[convert.index("--reasoning") + 1] == "off"


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
        assert f["verdict"] == ("not measured" if compared else "shown")
        assert len(f["samples"]) == (0 if compared else 1)
    assert "not measured" in done.stdout
    assert all(f["aim"] is None for f in figures.values())
    assert saved["aims"] in done.stdout and "too small a model to chat with" in saved["aims"]
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
    g = full.geometry
    kept = ({"text": found["text"]} for found in (g.shifts, g.spreads, g.thresholds))
    geometry = replace(g, **dict(zip(("shifts", "spreads", "thresholds"), kept, strict=True)))
    vectors = {"theirs.gguf": replace(full, geometry=geometry), "ours.gguf": full}

    def convert(self: Processes, command: list[str], output: Path) -> float:
        write_vector(vectors[output.name], output)
        return 3.0 if output.name == "theirs.gguf" else 1.0

    monkeypatch.setattr(Processes, "_seconds", convert)
    bench = Processes(subject(DEMO_MMPROJ), transformers=str(tmp_path))
    (f,) = bench.measure(2, ["conversion-transformers"])
    assert f.verdict == "not measured"
    assert "transformers measured text, ours text, image, video" in f.absent
    vectors["theirs.gguf"] = full
    (f,) = bench.measure(2, ["conversion-transformers"])
    assert f.samples == [3.0, 3.0] and "(text, image, video)" in f.note


def test_a_conversion_can_be_timed_again_and_again(tmp_path: Path) -> None:
    bench, output = Processes(subject()), tmp_path / "ours.gguf"
    command = [sys.executable, "-m", "mars_gguf.convert", *bench.convert_arguments(output)]
    assert all(bench._seconds(command, output) > 0 for _ in range(2))


def test_check_fails_when_an_aim_is_missed_and_only_then(tmp_path: Path) -> None:
    only = ["--only", "conversion-cvector", "--cvector-generator"]
    chat = ["-m", DEMO, "--vector", str(VECTOR), *QUICK[1:]]  # not known to be the demo's
    at_once = bench(*chat, "--check", *only, generator(tmp_path, "test -s ${14} || exit 3"))
    assert at_once.returncode == 1, at_once.stderr
    assert "aims missed: conversion-cvector" in at_once.stderr
    assert "missed" in at_once.stdout
    unmeasured = bench(*chat, "--check", "--only", "conversion-cvector,conversion-transformers")
    assert unmeasured.returncode == 0, unmeasured.stderr
    failing = bench(*QUICK, *only, generator(tmp_path, "echo no such luck >&2; exit 3"))
    assert failing.returncode == 2
    assert "returned 3: no such luck" in failing.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--demo", "--only", "speed"], "no figure speed"),
        (["--demo", "--repetitions", "0"], "expected 1 to"),
        (["--demo", "--json", "/"], "a folder, expected the name of a file"),
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
