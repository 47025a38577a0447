from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mars_gguf import demo_model


def test_the_shipped_model_comes_back_as_a_checkpoint_and_is_exported_as_itself(
    tmp_path: Path,
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("tokenizers")
    safetensors = pytest.importorskip("safetensors.torch")
    import gguf

    from lab.demo_model import export, restore

    restore.main([str(tmp_path)])
    weights = safetensors.load_file(tmp_path / "refer.safetensors")
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
