"""A model is loaded as ``llama_cpp.server`` loads one with the same settings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_cpp
import llama_cpp.server.settings as upstream
import pytest
from llama_cpp.llama_tokenizer import LlamaHFTokenizer
from llama_cpp.server.model import LlamaProxy

from mars_gguf.errors import ModelError
from mars_gguf.server import model_loader
from mars_gguf.server.settings import ModelSettings


class Loaded:
    """Keeps what a model is given."""

    def __init__(self, model_path: str, **given: Any) -> None:
        self.given = given | {"model_path": model_path}
        self.cache, self.template = None, SimpleNamespace(takes=lambda role: True)

    def set_cache(self, cache: Any) -> None:
        self.cache = cache

    def chat_handler(self, **given: Any) -> Any:
        return given


OTHER: dict[str, Any] = {
    "kv_overrides": ["a=bool:true", "b=int:3", "c=float:0.5", "d=str:e"], "draft_model": "lookup",
    "draft_model_num_pred_tokens": 3, "hf_pretrained_model_name_or_path": "a/b", "cache": True,
    "cache_size": 1000, "tensor_split": [0.5, 0.5], "rpc_servers": "a:1", "chat_format": "llama-2",
    "lora_path": "lora.gguf", "lora_base": "base.gguf", "type_k": 1, "type_v": 8, "n_ctx": 17,
    "n_threads": 3, "n_threads_batch": 5, "n_gpu_layers": 7, "split_mode": 2, "main_gpu": 1,
    "chat_template_kwargs": {"said": "one"}, "numa": 2, "seed": 11, "flash_attn": True,
    "n_batch": 31, "n_ubatch": 33, "last_n_tokens_size": 35, "yarn_orig_ctx": 37,
    "mul_mat_q": False, "rope_scaling_type": 2, "rope_freq_base": 2.5, "rope_freq_scale": 3.5,
    "use_mmap": False,
    "yarn_ext_factor": 4.5, "yarn_attn_factor": 5.5, "yarn_beta_fast": 6.5, "yarn_beta_slow": 7.5,
    "vocab_only": True, "use_mlock": True, "logits_all": False, "embedding": True,
    "offload_kqv": False, "verbose": True,
}  # fmt: skip


def test_no_setting_is_left_out() -> None:
    elsewhere = {"model", "model_alias", "clip_model_path", "hf_model_repo_id", "cache_type"}
    elsewhere.add("hf_tokenizer_config_path")
    assert upstream.ModelSettings.model_fields.keys() == OTHER.keys() | elsewhere


@pytest.mark.parametrize("other", [{}, OTHER], ids=["default", "other"])
def test_it_is_given_what_llama_cpp_server_gives_it(
    other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "Llama", Loaded)
    monkeypatch.setattr(model_loader, "SteeredLlama", Loaded)
    monkeypatch.setattr(LlamaHFTokenizer, "from_pretrained", staticmethod(lambda name: name))
    settings = ModelSettings(model="m.gguf", vector="v.gguf", **other)
    theirs: Any = LlamaProxy.load_llama_from_model_settings(settings)
    ours: Any = model_loader.load_model(settings, None)
    for given in (theirs.given, ours.given):
        if given["draft_model"] is not None:
            given["draft_model"] = vars(given["draft_model"])
    del theirs.given["mul_mat_q"]  # which Llama does not know
    assert {name: ours.given[name] for name in theirs.given} == theirs.given
    assert vars(ours.cache or Loaded) == vars(theirs.cache or Loaded)
    said = other.get("chat_template_kwargs", {})
    assert ours.chat_handler(n=1) == theirs.chat_handler(n=1) == {"n": 1, **said}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_overrides": ["a=3"]}, "found 'a=3', expected KEY=TYPE:VALUE"),
        ({"kv_overrides": ["a=int:x"]}, "found 'a=int:x', expected KEY=TYPE:VALUE"),
        ({"chat_format": "hf-autotokenizer"}, "give hf_pretrained_model_name_or_path"),
        ({"chat_format": "hf-tokenizer-config"}, "give hf_tokenizer_config_path"),
    ],
)
def test_settings_that_say_no_model_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        model_loader.load_model(ModelSettings(model="m", vector="v", **settings), None)


def test_a_format_may_be_that_of_a_tokenizer_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_loader, "SteeredLlama", Loaded)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"chat_template": "", "bos_token": "<s>", "eos_token": "</s>"}')
    settings = ModelSettings(
        model="m", vector="v", chat_format="hf-tokenizer-config",
        hf_tokenizer_config_path=str(config),
    )  # fmt: skip
    loaded: Any = model_loader.load_model(settings, None)
    assert callable(loaded.given["chat_handler"])
