from __future__ import annotations

from pathlib import Path

import pytest

from lab.demo_model import data


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
    safetensors.save_file(weights, tmp_path / "refer.safetensors")
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
