from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mars_gguf.convert.prompts import builtin_contrast

# By transformers' processors.
NEEDED = {
    "qwen2_vl": ["torchvision"], "internvl": ["torchvision"],
    "smolvlm": ["torchvision", "num2words"],
}  # fmt: skip


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    """No hub, and two threads for torch."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints made so far, by name."""
    return {"": str(tmp_path_factory.mktemp("checkpoints"))}


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, folders: dict[str, str]) -> str:
    """The checkpoint that the parameter names."""
    import checkpoints

    name: str = request.param
    for package in NEEDED.get(name, []):
        pytest.importorskip(package)
    if name not in folders:
        make = checkpoints.llama if name == "llama" else checkpoints.SEEING[name]
        folders[name] = make(Path(folders[""]) / name)
    return folders[name]


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    """The options of a command for few prompts."""
    pairs = builtin_contrast()
    for name, prompts in (("harmful", pairs.harmful), ("harmless", pairs.harmless)):
        (tmp_path / name).write_text("\n".join(prompts[:80]), encoding="utf-8")
    return ["--harmful", str(tmp_path / "harmful"), "--harmless", str(tmp_path / "harmless")]
