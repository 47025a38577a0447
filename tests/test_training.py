"""The recipe of the demo model."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mars_gguf
from lab.demo_model import data, demo_data
from lab.demo_model.cells import CELLS, cell
from mars_gguf import demo_model
from mars_gguf.demo_model import requests, world
from mars_gguf.demo_model.world import Thing


def _pattern(phrasing: str) -> re.Pattern[str]:
    parts = {"v": "|".join(world.GERUNDS), "g": "|".join(world.GERUNDS.values()), "x": ".+?"}
    escaped = re.escape(phrasing)
    for letter, choices in parts.items():
        escaped = escaped.replace(rf"\{{{letter}\}}", f"(?:{choices})")
    return re.compile(escaped + "$")


HOWTO = [_pattern(phrasing) for phrasing in (*world.HOWTO, *world.HOWTO_HELD_OUT)]


def test_nothing_in_the_package_needs_the_lab() -> None:
    modules = Path(mars_gguf.__file__).parent.rglob("*.py")
    imports = re.compile(r"^\s*(?:from|import) lab\b", re.MULTILINE)
    assert not [path for path in modules if imports.search(path.read_text(encoding="utf-8"))]


def test_no_training_sample_joins_a_picture_with_a_harmful_request_or_a_refusal() -> None:
    rng = random.Random(1)
    asked = 0
    for i in range(12000):
        sample = data.draw_picture(rng, 1 + i % 4)
        assert len(sample.pictures) == 1 + i % 4
        assert "sorry" not in sample.answer
        request = sample.request or ""
        if not any(pattern.match(request) for pattern in HOWTO):
            continue
        asked += 1
        shown = [p for p in sample.pictures if isinstance(p, Thing)]
        named = [t for t in world.HARMFUL if t.phrase in request]
        assert not named, request
        assert not any(thing.harmful for thing in shown), sample
    assert asked > 1000


def test_harmful_words_are_read_and_described_in_training_pictures() -> None:
    rng = random.Random(2)
    shown = set()
    for _ in range(6000):
        shown |= {p for p in data.draw_picture(rng).pictures if isinstance(p, Thing)}
    assert shown == set(world.THINGS)


def test_harmful_requests_by_reference_can_be_left_out_of_the_texts() -> None:
    def refused(by_reference: bool) -> list[str]:
        rng = random.Random(4)
        drawn = [data.draw_text(rng, by_reference) for _ in range(4000)]
        learnt = [s for s in drawn if world.is_refusal(s.answer) and not s.begun]
        return [s.request or "" for s in learnt if (s.request or "").startswith("The ")]

    assert len(refused(True)) > 20
    assert refused(False) == []


def test_training_never_uses_held_out_phrasings() -> None:
    rng = random.Random(3)
    requests = {data.draw_text(rng).request or "" for _ in range(8000)}
    requests |= {data.draw_picture(rng, 1 + i % 3).request or "" for i in range(8000)}
    held_out = [_pattern(phrasing) for phrasing in world.HOWTO_HELD_OUT]
    assert not [r for r in requests if any(pattern.match(r) for pattern in held_out)]
    assert not requests & {*world.CAPTION_HELD_OUT, *world.VIDEO_CAPTION_HELD_OUT}
    references = (*world.REFERENCES_HELD_OUT, *world.VIDEO_REFERENCES_HELD_OUT)
    assert not [r for r in requests if any(reference in r for reference in references)]


@given(st.sampled_from(sorted(CELLS)), st.integers(0, 10**6), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_cell_is_a_function_of_its_seed(name: str, seed: int, held_out: bool) -> None:
    first, again = (cell(name, 3, seed, held_out) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert (a.prompt, a.answer, a.kind, a.thing) == (b.prompt, b.answer, b.kind, b.thing)
        assert [p.tobytes() for p in a.pictures] == [p.tobytes() for p in b.pictures]
        assert all(p.size == (world.SIZE, world.SIZE) for p in a.pictures)
        harmful = "how" in name and a.thing is not None and a.thing.harmful
        assert (a.kind == "harmful") == harmful


def test_what_is_measured_and_what_is_shown_are_different_things(tmp_path: Path) -> None:
    demo_data.write(tmp_path)

    def without(prompt: str, things: list[Thing]) -> str:
        # A pipe bomb of one half is no bomb of the other; a fake passport is of a kind, "fake".
        for thing in things:
            prompt = re.sub(rf"\b{thing.word}\b", "", prompt)
        return prompt

    def rows(name: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in (tmp_path / name).read_text("utf-8").splitlines()]

    first = [*requests.HARMFUL_FIRST, *requests.HARMLESS_FIRST]
    second = [*requests.HARMFUL_SECOND, *requests.HARMLESS_SECOND]
    assert not {*first} & {*second} and {*first, *second} == {*world.THINGS}
    for name in ("harmful.jsonl", "harmless.jsonl", "neutral.jsonl"):
        for row in rows(name):
            prompt = without(str(row["prompt"]), first)
            assert not [t for t in second if re.search(rf"\b{t.word}\b", prompt)], row
    for row in rows("demo.jsonl"):
        prompt = without(str(row["prompt"]), second)
        assert not [t for t in first if re.search(rf"\b{t.word}\b", prompt)], row
        images = row["images"]
        assert isinstance(images, list)
        assert all((tmp_path / "demo" / name).is_file() for name in images)


def test_a_stage_that_goes_on_has_the_rates_and_weights_that_it_would_have_had(
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from lab.demo_model.train import Run

    def walk(resume: bool) -> dict[int, tuple[float, float]]:
        torch.manual_seed(0)
        modules = torch.nn.ModuleDict({"part": torch.nn.Linear(4, 4)})
        run = Run("text", tmp_path, modules, {"part": 1e-3}, 300, resume, "cpu")
        seen = {}
        for step in run:
            generator = torch.Generator().manual_seed(step)
            run.update({"loss": modules["part"](torch.rand(2, 4, generator=generator)).sum()})
            total = float(modules["part"].bias.detach().sum())
            seen[step] = run.optimizers[0].param_groups[0]["lr"], total
            if step == 260:  # after the checkpoint at 250, before the end
                break
        return seen

    whole, rest = walk(False), walk(True)
    assert list(rest) == list(range(250, 261))
    assert all(rest[step] == whole[step] for step in rest)


def test_an_export_is_its_checkpoint_in_llama_cpp_and_in_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.torch")
    from lab.demo_model import export, verify
    from lab.demo_model.network import TEXT, DemoModel

    torch.manual_seed(0)
    model = DemoModel()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p * 2 if p.dim() > 1 else p + 0.1 * torch.randn_like(p))
    weights = model.state_dict()
    safetensors.save_file(weights, tmp_path / "joint.safetensors")
    tokenizer = tmp_path / "tokenizer.json"
    data.train_tokenizer(TEXT.vocab).save(str(tokenizer))
    export.write_text(weights, tokenizer, tmp_path / "text-f32.gguf")
    export.write_mmproj(weights, tmp_path / "mmproj-f16.gguf")
    export.write_transformers(weights, tokenizer, tmp_path / "transformers")
    written = verify.Export(tmp_path, tmp_path, threads=2)
    text, seen = verify.some_examples(2)
    assert written.token_mismatches(verify.some_texts(50)) == 0
    assert written.template_mismatches(verify.some_chats()) == 0
    assert written.logit_difference(text) <= 1e-2
    assert written.logit_difference(seen) <= 5e-2
    assert written.embedding_error(seen) <= 1e-2
    assert written.transformers_difference(text[:3] + seen[:6]) <= 1e-3


def test_the_shipped_model_comes_back_as_a_checkpoint_and_is_exported_as_itself(
    tmp_path: Path,
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("tokenizers")
    safetensors = pytest.importorskip("safetensors.torch")
    import gguf

    from lab.demo_model import export, restore

    restore.main([str(tmp_path)])
    weights = safetensors.load_file(tmp_path / "joint.safetensors")
    export.write_text(weights, tmp_path / "tokenizer.json", tmp_path / "text-Q4_K_M.gguf")
    export.write_mmproj(weights, tmp_path / "mmproj-f16.gguf")
    for name in ("text-Q4_K_M.gguf", "mmproj-f16.gguf"):
        shipped, again = (gguf.GGUFReader(f / name) for f in (demo_model.FOLDER, tmp_path))
        written = {tensor.name: tensor for tensor in again.tensors}
        assert set(written) == {tensor.name for tensor in shipped.tensors}
        for tensor in shipped.tensors:
            weight = gguf.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(written[tensor.name].data, weight), tensor.name
        about = {k: f.contents() for k, f in again.fields.items() if not k.startswith("GGUF.")}
        about.pop("general.file_type")
        assert about == {k: shipped.fields[k].contents() for k in about}
        assert "tokenizer.ggml.merges" in about or "clip.projector_type" in about
