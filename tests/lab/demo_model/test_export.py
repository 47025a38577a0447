from __future__ import annotations

from pathlib import Path

import pytest

from lab.demo_model import data


def test_the_files_for_llama_cpp_are_the_model_that_transformers_loads(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from lab.demo_model import export, network, verify

    torch.manual_seed(0)
    model = network.new_model()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p * 2 if p.dim() > 1 else p + 0.1 * torch.randn_like(p))
    tokenizer = tmp_path / "tokenizer.json"
    data.train_tokenizer().save(str(tokenizer))
    export.write(model, tokenizer, tmp_path)
    written = verify.Export(tmp_path, threads=2)
    loaded = written.model.state_dict()
    assert all(torch.equal(loaded[key], weight) for key, weight in model.state_dict().items())
    text, seen = verify.some_examples(1)
    assert written.token_mismatches(verify.some_texts(50)) == 0
    assert written.prompt_mismatches(text + seen) == 0
    assert written.logit_difference(text) <= 1e-2
    assert written.logit_difference(seen) <= 5e-2
    assert written.embedding_error(seen) <= 1e-2
