"""Starting the server: what does not fit is told before anything is served."""

from __future__ import annotations

import json
from pathlib import Path

import models
import pytest
from models import DEMO, DEMO_MMPROJ
from templates import with_template

from mars_gguf import demo_model
from mars_gguf.server.__main__ import main
from mars_gguf.vectors import write_vector


def test_the_server_does_not_start_with_what_does_not_fit(
    tmp_path: Path, small_llama: str, capfd: pytest.CaptureFixture[str]
) -> None:
    vector, damaged, text = (str(tmp_path / f"{n}.gguf") for n in ("other", "damaged", "text"))
    mute = with_template(tmp_path / "mute.gguf", "{{ 'Hello' }}")
    write_vector(models.vector(small_llama), vector)
    write_vector(models.vector(DEMO, modalities=["text"]), text)
    Path(damaged).write_bytes(demo_model.VECTOR.read_bytes()[:-9])
    good = str(demo_model.VECTOR)
    config = tmp_path / "config.json"
    fits = {"model": DEMO, "vector": good}
    config.write_text(json.dumps({"models": [fits, {"model": small_llama, "vector": good}]}))
    unsteered = tmp_path / "unsteered.json"
    unsteered.write_text(json.dumps({"models": [fits | {"vector": "none"}, fits]}))
    typo = tmp_path / "typo.json"
    typo.write_text(json.dumps({"models": [{**fits, "vectr": good}]}))
    demo_flags = ["--model", DEMO, "--mmproj", DEMO_MMPROJ]
    for arguments, message in (
        (["--model", DEMO], "no vector"),
        ([], "model: Field required"),
        (["--model", DEMO, "--vector", vector], "made for another model"),
        (["--model", DEMO, "--vector", damaged], "damaged.gguf"),
        (["--model", DEMO, "--vector", str(tmp_path / "none.gguf")], "no such vector file"),
        ([*demo_flags, "--vector", text], "measured on text only"),
        (["--demo", "--vectors", json.dumps({"other": vector})], "made for another model"),
        (["--demo", "--model", DEMO], "--demo brings its own model"),
        (["--demo", "--verbose", "true"], "--log-prompts"),
        (["--model", DEMO, "--vector", good, "--mmproj", DEMO], "could not load this as"),
        (["--model", DEMO, "--vector", good, "--mmproj", "none"], "none"),
        (["--demo", "--chat_format", "llama-2"], "chat_format: found 'llama-2'"),
        (["--demo", "--chat_format", "llama-2", "--force"], "takes no mmproj"),
        (["--demo", "--chat_format", "chatml"], "chat_template_sha256: the vector was made for"),
        (["--demo", "--chat_template_kwargs", '{"a": 1}'], "chat_template_kwargs: the vector was"),
        (["--demo", "--reasoning", "answer"], "chat template knows no thoughts"),
        (["--demo", "--reasoning", "on"], "reasoning"),
        (["--demo", "--chat_template_kwargs", '{"messages": 1}'], "messages cannot be set"),
        (["--model", mute, "--vector", good, "--force"], "shows no text of a user"),
        (["--config_file", str(config)], "made for another model"),
        (["--config_file", str(unsteered)], "first model is that of requests which name none"),
        (["--model", DEMO, "--vector", "none"], "first model is that of requests which name none"),
        (["--demo", "--vectors", json.dumps({"none": good})], "'none' has a meaning of its own"),
        (["--config_file", str(typo)], "vectr"),
        (["--config_file", str(config), "--vector", good], "in the configuration file"),
        (["--config_file", str(tmp_path / "none.json")], "cannot be read"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        error = capfd.readouterr().err
        assert message in error[error.index("error: ") :], arguments
