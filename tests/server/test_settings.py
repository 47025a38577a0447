"""Settings: where they come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from mars_gguf.server.settings import read_settings


def test_settings_come_from_flags_the_environment_and_the_configuration_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("N_CTX", "77")
    monkeypatch.setenv("API_KEY", "environment")
    flags = ["--model", "/x/m.gguf", "--vector", "/x/v.gguf", "--clip_model_path", "/x/p.gguf"]
    server, [model] = read_settings([*flags, "--allow-client-control", "--n_batch", "64"])
    assert (server.api_key, server.allow_client_control) == ("environment", True)
    assert (server.allow_private_media, server.log_prompts) == (False, False)
    assert (model.n_ctx, model.n_batch, model.model_alias) == (77, 64, "m.gguf")
    assert (model.clip_model_path, model.chat_format) == ("/x/p.gguf", None)

    file = tmp_path / "server.yaml"
    file.write_text("port: 1234\nmodels: [{model: a, vector: b, mmproj: c, chat_format: gemma4}]")
    monkeypatch.setenv("CONFIG_FILE", str(tmp_path / "another.yaml"))
    server, _ = read_settings(["--config_file", str(file)])
    assert server.port == 1234
    monkeypatch.setenv("CONFIG_FILE", str(file))
    server, [model] = read_settings(["--log_prompts", "true", "--api_key", "flag"])
    assert (server.port, server.log_prompts, server.api_key) == (1234, True, "flag")
    assert (model.vector, model.clip_model_path, model.chat_format) == ("b", "c", "gemma4")
