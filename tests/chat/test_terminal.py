"""What a person sees, rendered on a terminal that keeps what it was shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chats import chat
from models import DEMO, OPTIONS, picture, vector
from templates import with_template
from thinking import ALWAYS, Script

from mars_gguf import demo_model
from mars_gguf.chat.terminal import COMMANDS
from mars_gguf.chat.transcript import save
from mars_gguf.errors import SteeringError
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.steerer import Steerer


def test_a_reply_is_followed_by_what_steering_did_and_why(llama: SteeredLlama) -> None:
    shown, conversation = chat(llama, "How do I make a bomb?", "/why")
    assert demo_model.REFUSAL in shown
    line = r"text · t \d\.\d\d · gate 1\.00 · steered · \d+ tokens, [\d.]+/s, first after"
    assert re.search(line, shown)
    (turn,) = conversation.turns
    s = turn.steering
    assert s is not None
    for figure in (f"{s.t:.2f}", f"z = {s.z:.1f}", f"alpha = {s.alpha:.4g}", f"block {s.layer}"):
        assert figure in shown
    assert "text: no picture in the context" in shown


def test_a_picture_may_come_alone(llama: SteeredLlama, png: Path) -> None:
    shown, conversation = chat(llama, "", f"/image {png}", "", "")
    assert "image · t " in shown
    (turn,) = conversation.turns
    assert turn.answer
    assert [part["type"] for part in turn.request["content"]] == ["image_url"]


def test_media_are_attached_to_one_message(llama: SteeredLlama, png: Path, tmp_path: Path) -> None:
    typed = str(png).replace(" ", "\\ ")
    shown, conversation = chat(
        llama, f"/image {png}", f"/image {typed}", f"/image '{png}'", "What?", "And?"
    )
    assert "[1 picture] > " in shown
    assert "[3 pictures] > " in shown
    parts = [turn.request["content"] for turn in conversation.turns]
    assert [len(p) for p in parts] == [4, len("And?")]
    shown, conversation = chat(llama, "/video clip.mp4", "What is shown?")
    assert "[video of 2 frames] > " in shown
    assert "video · t " in shown
    save(conversation, tmp_path / "chat.md")
    assert "**User:** [video of 2 frames] What is shown?\n" in (tmp_path / "chat.md").read_text()


def test_a_large_picture_is_attached_smaller(llama: SteeredLlama, tmp_path: Path) -> None:
    picture(1).resize((3000, 1500)).save(tmp_path / "large.png")
    _, conversation = chat(llama, f"/image {tmp_path / 'large.png'}", "What?")
    attached = conversation.turns[0].request["content"][0]["image_url"]["url"]
    assert (attached.width, attached.height) == (2048, 1024)


MISTAKES = {
    "/image none.png": "error: none.png: no such file",
    "/image ~nobody-has-this-name/a.png": "error: ~nobody-has-this-name/a.png: no such file",
    "/image " + "a" * 5000: "error: ",
    "/video none.mp4": "error: none.mp4: no such file",
    "/save a\0b": "error: a\\x00b: ",
    "/save /dev/null/all.md": "error: ",
    "/dance": "no command /dance",
    "/" + "a" * 5000: "no command",
    "caf\udce9": "error: the message: found b'\\xe9', expected UTF-8",
    "/system caf\udce9": "error: the system prompt: found b'\\xe9', expected UTF-8",
    str(demo_model.TEXT_MODEL): "/image or /video",
    "/why": "nothing was said yet",
    "/compare": "nothing was said yet",
    "a " * 600: "error: the message needs",
    "<Ctrl-C>": "> ",
}


def test_after_any_mistake_the_chat_goes_on(llama: SteeredLlama) -> None:
    shown, conversation = chat(llama, *MISTAKES, "How do I make a bomb?")
    answers = " ".join(shown.split()).split("> ")
    for said in MISTAKES.values():
        assert any(said in f"{answer}> " for answer in answers), said
    assert demo_model.REFUSAL in shown
    assert len(conversation.turns) == 1


def test_what_is_attached_can_be_taken_off(llama: SteeredLlama, png: Path) -> None:
    _, conversation = chat(llama, f"/image {png}", "/image", "/video clip.mp4", "/video", "What?")
    assert conversation.turns[0].request["content"] == "What?"


def test_a_model_that_sees_nothing_takes_no_pictures(png: Path) -> None:
    blind = SteeredLlama(DEMO, vector=demo_model.VECTOR, **OPTIONS)
    shown, conversation = chat(blind, f"/image {png}", "/video clip.mp4", "What?")
    assert shown.count("loaded without --mmproj") == 2
    assert len(conversation.turns) == 1
    blind.close()


def test_a_failure_of_llama_cpp_is_said_and_the_chat_goes_on(
    llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([RuntimeError("llama_decode returned 1"), SteeringError("out of order")])
    original = Steerer._settle

    def fail(self: Steerer) -> bool:
        if (error := next(failures, None)) is not None:
            raise error
        return original(self)

    monkeypatch.setattr(Steerer, "_settle", fail)
    shown, conversation = chat(llama, "What?", "What?", "How do I make a bomb?")
    assert "error: llama.cpp could not go on: llama_decode returned 1" in shown
    assert "error: out of order" in shown
    assert demo_model.REFUSAL in shown
    assert len(conversation.turns) == 1


def test_help_lists_every_command(llama: SteeredLlama) -> None:
    shown, _ = chat(llama, "/help")
    for usage in COMMANDS:
        assert usage in shown
    assert chat(llama, "/exit", "How do I make a bomb?")[1].turns == []


def test_clear_and_system_change_what_the_model_sees(llama: SteeredLlama, png: Path) -> None:
    shown, conversation = chat(
        llama, "Hello.", f"/image {png}", "/clear", "Hello.", "/system Be brief"
    )
    assert "the conversation is forgotten" in shown
    assert "the system prompt is set" in shown
    assert conversation.messages()[0] == {"role": "system", "content": "Be brief"}
    assert len(conversation.messages()) == 3
    assert isinstance(conversation.turns[0].request["content"], str)
    assert chat(llama, "/system Be brief", "/system")[1].system is None


def test_compare_shows_both_replies_unless_nothing_was_steered(llama: SteeredLlama) -> None:
    image = demo_model.FOLDER / "demo" / "image-harmful-00-0.png"
    shown, conversation = chat(llama, f"/image {image}", "How do I make it?", "/compare")
    both = shown[shown.index("without steering") :]
    assert conversation.turns[0].answer.split()[0] in both
    assert "".join(conversation.unsteered()).split()[0] in both
    shown, conversation = chat(llama, "What is a hat?", "/compare")
    assert not conversation.turns[0].steered
    assert "the gate stayed closed: steering changed nothing" in shown
    assert "without steering" not in shown


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteeredLlama]:
    path = with_template(tmp_path_factory.mktemp("thinks") / "model.gguf", ALWAYS)
    llama = SteeredLlama(path, vector=vector(path), keep_turns=True, **OPTIONS)
    yield llama
    llama.close()


def test_of_a_model_that_thinks_it_is_said_which_token_was_judged(thinking: SteeredLlama) -> None:
    said = "tea</think>bread"
    script = Script(thinking.tokenize(said.encode(), add_bos=False, special=True))
    sampling: Any = {"logits_processor": [script], "max_tokens": len(script.forced) + 1}
    shown, conversation = chat(thinking, "How do I make a bomb?", "/why", **sampling)
    (turn,) = conversation.turns
    assert turn.answer.startswith(said) and turn.steered
    assert conversation.messages()[-1]["content"] == turn.answer
    assert "</think>" not in shown
    assert shown.index("tea") < shown.index("bread")
    assert "steered at the answer" in shown
    assert "the first token of the answer, after the thought" in shown


def test_a_thought_that_did_not_end_is_said_to_be_unjudged(
    thinking: SteeredLlama, tmp_path: Path
) -> None:
    js, md = tmp_path / "chat.json", tmp_path / "chat.md"
    lines = "How do I make a bomb?", "/why", "/compare", f"/save {js}", f"/save {md}"
    shown, conversation = chat(thinking, *lines)
    assert not conversation.turns[0].steered
    assert "not judged: the thought did not end (-n allows more tokens)" in shown
    assert "nothing: the thought did not end. Allow more tokens with -n" in shown
    assert "the thought did not end: steering changed nothing" in shown
    assert "before its answer began" in json.loads(js.read_text())["turns"][0]["mars"]["note"]
    assert "not judged" in md.read_text()
