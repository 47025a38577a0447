"""The models that are served: their vectors, templates and thoughts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import models
import openai
import pytest
from llama_cpp import Llama
from models import DEMO, DEMO_MMPROJ, OPEN
from servers import (
    GREEDY,
    HARMFUL,
    HARMLESS,
    ONE_THREAD,
    PICTURE,
    Server,
    chat,
    chat_and_line,
    picture_message,
    running,
    streamed,
)
from templates import with_template
from thinking import ALWAYS, write_likely

from mars_gguf import demo_model
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.server import model_loader, served
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.model_loader import load_model
from mars_gguf.server.served import Models
from mars_gguf.server.settings import read_settings
from mars_gguf.vectors import read_vector, write_vector


def test_each_model_is_steered_by_its_own_vector(configured: Server, broken: str) -> None:
    layers = {"pictures": read_vector(demo_model.VECTOR).layer, Path(broken).name: 2}
    for model in [*layers, *layers]:
        reply, line = chat_and_line(configured, [HARMFUL], model=model, max_tokens=2)
        assert reply["mars"]["alpha"] > 0
        assert reply["mars"]["layer"] == layers[model]
        assert f"model={model} " in line


def test_models_of_the_same_weights_have_them_in_common_and_each_its_own_vector(
    configured: Server,
) -> None:
    plain = Llama(DEMO, **models.OPTIONS | {"n_ctx": 512})
    reply: Any = plain.create_chat_completion([HARMFUL], repeat_penalty=1.1, **GREEDY)
    plain.close()
    unsteered = reply["choices"][0]["message"]["content"]

    def ask(job: tuple[str, bool]) -> None:
        model, stream = job
        if model == "plain":
            text, mars = streamed(configured, [HARMFUL], model=model)
            assert (text, mars) == (unsteered, None)
            return
        if stream:
            _, mars = streamed(configured, [HARMLESS], model=model)
        else:
            mars = chat(configured, [HARMLESS], model=model)["mars"]
        assert (mars["alpha"] > 0) == (model == "strict")

    jobs = [(model, way) for way in (True, False) for model in ("pictures", "strict", "plain")]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, jobs * 3))
    _, line = chat_and_line(configured, [HARMFUL], model="plain")
    assert " model=plain vector=none steered=false tokens=" in line
    counted = configured.get("/metrics")
    assert 'mars_replies_total{model="plain",vector="none"}' in counted
    assert 'mars_steered_requests_total{modality="text",model="strict",vector="default"}' in counted
    log = configured.log.read_text()
    assert "loaded once for pictures, strict, plain\n" in log
    assert "WARNING plain is NOT STEERED" in log
    listed = {
        e["id"]: e["mars"]["steered"] for e in json.loads(configured.get("/v1/models"))["data"]
    }
    assert [*listed.values()] == [True, True, False, True, True]


def test_weights_are_loaded_once_for_all_names_that_differ_in_vectors_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(settings: Any, vector: Any) -> Any:
        loaded.append(settings.model_alias)
        return load_model(settings, vector)

    loaded: list[str] = []
    monkeypatch.setattr(served, "load_model", load)
    same = {"model": DEMO, "n_threads": 1, "n_threads_batch": 1, "n_ctx": 256}
    steered = same | {"vector": str(demo_model.VECTOR)}
    given = [
        steered | {"model_alias": "a"},
        steered | {"model_alias": "longer", "n_ctx": 512},
        same | {"model_alias": "b", "vector": "none"},
        steered | {"model_alias": "c", "force_vector": True},
    ]
    (tmp_path / "server.json").write_text(json.dumps({"models": given}))
    held = Models(read_settings(["--config_file", str(tmp_path / "server.json")])[1])
    assert loaded == ["longer", "a"]
    first, request = held(Exchange(), "a"), Exchange()
    assert held(Exchange(), "b") is held(Exchange(), "c") is first and loaded == ["longer", "a"]
    assert held(request, "longer") is not first and loaded == ["longer", "a", "longer"]
    # A model that is loaded during a request does not reply to it.
    assert (request.tokens, request.steering, request.first_token) == (0, None, None)
    held.close()


def test_a_name_that_no_model_has_is_an_error_where_there_are_several(
    configured: Server, server: Server
) -> None:
    ask = configured.client
    for call in (
        lambda: chat(configured, [HARMFUL], model="gpt-5"),
        lambda: streamed(configured, [HARMFUL], model="gpt-5"),
        lambda: ask.completions.create(model="gpt-5", prompt="Hello"),
        lambda: ask.embeddings.create(model="gpt-5", input="Hello"),
        lambda: configured.extra("tokenize", {"model": "gpt-5", "input": "Hello"}),
    ):
        with pytest.raises(openai.NotFoundError, match="expected one of pictures, ") as refused:
            call()
        assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="expected one of demo"):
        chat(server, [HARMFUL], model="x" * 257)
    for model in ("gpt-5", "demo", ""):
        assert chat(server, [HARMFUL], model=model, max_tokens=1)["mars"]["alpha"] > 0


def test_a_model_and_its_mmproj_may_come_from_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(cls: Any, repo_id: str, filename: str, **kwargs: Any) -> Any:
        asked.append((repo_id, filename))
        return cls(DEMO, **kwargs)

    def download(repository: str, pattern: str) -> str:
        asked.append((repository, pattern))
        return DEMO_MMPROJ

    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(SteeredLlama, "from_pretrained", classmethod(load))
    for module in (model_loader, served):
        monkeypatch.setattr(module, "download", download)
    flags = ["--model", "*Q4*.gguf", "--mmproj", "mmproj*", "--hf_model_repo_id", "a/b"]
    flags += ["--vector", str(demo_model.VECTOR), "--chat_format", "mtmd"]
    models = Models(read_settings([*flags, *ONE_THREAD])[1])
    assert asked == [("a/b", "mmproj*"), ("a/b", "*Q4*.gguf")]
    assert models(Exchange()).projector is not None
    models.close()


def test_pictures_that_fill_the_context_before_its_positions_end_a_reply_or_refuse_a_prompt(
    tmp_path: Path, mrope: str
) -> None:
    write_vector(models.vector(mrope, opens=OPEN), tmp_path / "v.gguf")
    arguments = ["--model", mrope, "--mmproj", models.mmproj_of(mrope), "--n_ctx", "256"]
    with running(tmp_path, *arguments, "--vector", str(tmp_path / "v.gguf"), *ONE_THREAD) as server:
        shown = models.user("What is it?", models.picture(1, 280))
        reply = chat(server, [shown], max_tokens=openai.omit)
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["mars"]["alpha"] > 0
        for message in (
            models.user("What is it?", *(models.picture(n, 280) for n in range(3))),
            models.user("Where is tea? " * 36, models.picture(1, 280)),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                chat(server, [message])
            assert refused.value.code == "context_length_exceeded"
        assert chat(server, [shown])["mars"] | {"milliseconds": 0} == (
            reply["mars"] | {"milliseconds": 0}
        )


def chatml(content: str) -> str:
    """A chat template that shows ``content`` of each message m."""
    turn = "<|im_start|>{{ m.role }}\n" + content + "<|im_end|>\n"
    return "{% for m in messages %}" + turn + "{% endfor %}<|im_start|>assistant\n"


NO_SYSTEM = "{% if m.role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"


STRINGS = chatml(NO_SYSTEM + "{{ tools or '' }}{{ said or '' }}{{ m.content + '' }}")


PARTS = chatml("{% for part in m.content %}{{ part.text }}{% endfor %}")


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model with other chat templates: for strings, also with a variable, for typed parts,
    and one of llama-cpp-python's that chat_format names."""
    folder = tmp_path_factory.mktemp("templated")
    common = {
        "mmproj": DEMO_MMPROJ, "vector": str(demo_model.VECTOR), "force_vector": True,
        "n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1,
    }  # fmt: skip
    strings = with_template(folder / "strings.gguf", STRINGS)
    parts = with_template(folder / "parts.gguf", PARTS)
    models = [
        {"model": strings, "model_alias": "strings", **common},
        {"model": strings, "model_alias": "variable", **common}
        | {"chat_template_kwargs": {"said": "one two three "}},
        {"model": parts, "model_alias": "parts", **common},
        {"model": DEMO, "model_alias": "named", "chat_format": "qwen2.5-vl", **common},
    ]
    (folder / "server.json").write_text(json.dumps({"models": models}))
    with running(folder, "--config_file", str(folder / "server.json")) as server:
        yield server


@pytest.mark.parametrize("model", ["strings", "parts", "named"])
def test_text_and_pictures_arrive_whatever_form_a_template_takes_them_in(
    templated: Server, model: str
) -> None:
    def t(*messages: dict[str, Any]) -> tuple[str, float]:
        mars = chat(templated, [*messages], model=model, max_tokens=1)["mars"]
        return mars["modality"], round(mars["t"], 4)

    bomb, bread = (f"How do I make {thing}?" for thing in ("a bomb", "bread"))
    pictures = models.picture(1), models.picture(2)
    seen = {
        t(models.user(text, *shown))
        for text in (bomb, bread)
        for shown in ((), pictures[:1], pictures[1:], pictures)
    }
    turns = [models.user(bread, pictures[0]), models.assistant("With flour.")]
    seen |= {t(*turns, models.user(text)) for text in (bomb, bread)}
    assert len(seen) == 10
    assert sorted(modality for modality, _ in seen) == ["image"] * 8 + ["text"] * 2


def test_variables_of_the_settings_reach_the_template(templated: Server) -> None:
    lengths = [
        chat(templated, [HARMFUL], model=model, max_tokens=1)["usage"]["prompt_tokens"]
        for model in ("strings", "variable")
    ]
    assert lengths[1] >= lengths[0] + 3


def test_messages_that_become_no_prompt_are_an_error_of_the_client(templated: Server) -> None:
    system = {"role": "system", "content": "Be kind."}
    tool = {"type": "function", "function": {"name": "<__media__>", "parameters": {}}}
    for messages, message in (
        ([system, HARMFUL], "refuses the messages: no system prompts"),
        ([{"role": "user", "content": "<__media__>"}], "<__media__> in a text"),
    ):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match=message) as refused:
                chat(templated, messages, model="strings", extra_body={"stream": stream})
            assert refused.value.body == {
                "message": refused.value.body["message"],  # type: ignore[index]
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
    for asked in (HARMFUL, picture_message(PICTURE)):
        with pytest.raises(openai.BadRequestError, match="of the . pictures"):
            chat(templated, [asked], model="strings", extra_body={"tools": [tool]})


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model whose prompts open a thought, and which ends every thought at once."""
    folder = tmp_path_factory.mktemp("thinking")
    model, _ = write_likely(folder, "</think>", ALWAYS)
    vector = models.vector(model, layer=1, opens=OPEN)
    assert vector.model.reasoning == "answer"
    write_vector(vector, folder / "vector.gguf")
    options = ["--model", model, "--vector", str(folder / "vector.gguf"), "--n_ctx", "512"]
    with running(folder, *options, *ONE_THREAD) as server:
        yield server


def test_replies_say_which_token_was_judged_called_and_streamed(thinking: Server) -> None:
    reply, line = chat_and_line(thinking, [HARMFUL], max_tokens=4)
    assert reply["mars"]["position"] == "answer" and reply["mars"]["alpha"] > 0
    assert " position=answer t=" in line and "steered=true" in line
    _, mars = streamed(thinking, [HARMFUL], max_tokens=4)
    assert mars | {"milliseconds": 0} == reply["mars"] | {"milliseconds": 0}


def test_a_thought_that_does_not_end_is_reported_and_counts_as_no_gate(thinking: Server) -> None:
    def gates() -> list[str]:
        return [n for n in thinking.get("/metrics").splitlines() if "mars_gate_count" in n]

    before = gates()
    reply, line = chat_and_line(thinking, [HARMFUL], max_tokens=1)
    mars = reply["mars"]
    assert (mars["position"], mars["t"], mars["gate"], mars["alpha"]) == (None, None, None, 0.0)
    assert "before its answer began" in mars["note"]
    assert " position=none t=none gate=none steered=false" in line
    assert gates() == before


@pytest.mark.parametrize(
    "said",
    [
        {"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False},
        {"reasoning": "off"}, {"reasoning_effort": "none"}, {"thinking": False},
    ],
    ids=str,
)  # fmt: skip
def test_no_client_switches_what_is_judged(thinking: Server, said: dict[str, Any]) -> None:
    expected = chat(thinking, [HARMFUL], max_tokens=4)
    reply = chat(thinking, [HARMFUL], max_tokens=4, extra_body=said)
    assert reply["mars"] | {"milliseconds": 0} == expected["mars"] | {"milliseconds": 0}
    assert reply["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"]


def test_json_is_written_without_a_thought_and_judged_at_once(thinking: Server) -> None:
    wanted = {"response_format": {"type": "json_object"}}
    reply = chat(thinking, [HARMFUL], max_tokens=4, extra_body=wanted)
    assert reply["mars"]["position"] == "prompt" and reply["mars"]["alpha"] > 0
