"""What a person sees, rendered on a terminal that keeps what it was shown."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import DEMO, DEMO_MMPROJ, OPTIONS, picture, vector
from PIL import Image
from rich.console import Console
from templates import with_template
from thinking import ALWAYS, Script

from mars_gguf import demo_model
from mars_gguf.chat.conversation import Conversation
from mars_gguf.chat.replies import rendered, stream
from mars_gguf.chat.terminal import COMMANDS, Terminal, gauge
from mars_gguf.chat.transcript import save
from mars_gguf.console import visible
from mars_gguf.errors import MarsError, SteeringError
from mars_gguf.media.video import Video
from mars_gguf.reasoning import KNOWN, split
from mars_gguf.runtime.llama import SteeredLlama

SAMPLING: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16, "repeat_penalty": 1.0}


@pytest.fixture(scope="module")
def llama() -> Iterator[SteeredLlama]:
    llama = SteeredLlama(
        DEMO, vector=demo_model.VECTOR, mmproj=DEMO_MMPROJ, keep_turns=True, **OPTIONS
    )
    yield llama
    llama.close()


def screen(width: int = 90) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def text_of(console: Console) -> str:
    """All that was printed, less the codes that move the cursor."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def chat(llama: SteeredLlama, *lines: str, **sampling: Any) -> tuple[str, Conversation]:
    """What is shown, and the conversation, after these lines were typed."""
    conversation = Conversation(llama, sampling=SAMPLING | sampling)
    typed, console = iter(lines), screen()

    def read_line(prompt: str) -> str:
        console.print(prompt, end="", markup=False)
        line = next(typed, None)
        if line is None:
            raise EOFError
        if line == "<Ctrl-C>":
            raise KeyboardInterrupt
        return line

    def open_video(path: str) -> Video:
        if path != "clip.mp4":
            raise MarsError(f"{path}: no such file; expected a video")
        return Video(path, [picture(1), picture(2)], 2)

    Terminal(conversation, console, read_line, open_video).run()
    return text_of(console), conversation


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.png"
    picture(1).save(path)
    return path


def test_a_reply_is_followed_by_what_steering_did(llama: SteeredLlama) -> None:
    shown, conversation = chat(llama, "How do I make a bomb?")
    assert demo_model.REFUSAL in shown
    line = r"text · t \d\.\d\d · gate 1\.00 · steered · \d+ tokens, [\d.]+/s, first after"
    assert re.search(line, shown)
    assert len(conversation.turns) == 1


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
    url = conversation.turns[0].request["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as attached:
        assert attached.size == (2048, 1024)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/image none.png", "error: none.png: no such file"),
        ("/save", "error: /save needs a path"),
        ("/image 'odd", "error: 'odd: no such file"),
        ("/video none.mp4", "error: none.mp4: no such file"),
        ("/save /dev/null/all.md", "error: "),
        ("/dance", "no command /dance"),
        ("/image ~nobody-has-this-name/a.png", "error: ~nobody-has-this-name/a.png: no such file"),
        ("/save a\0b", "error: a\\x00b: "),
        ("/image a\0b", "error: a\\x00b: "),
        ("/image " + "a" * 5000, "error: "),
        ("/" + "a" * 5000, "no command"),
        ("caf\udce9", "error: the message: found b'\\xe9', expected UTF-8"),
        ("/system caf\udce9", "error: the system prompt: found b'\\xe9', expected UTF-8"),
        (str(demo_model.TEXT_MODEL), "/image or /video"),
        ("/why", "nothing was said yet"),
        ("/compare", "nothing was said yet"),
        ("a " * 600, "error: the message needs"),
        ("<Ctrl-C>", "> "),
    ],
)
def test_after_any_mistake_the_chat_goes_on(llama: SteeredLlama, line: str, said: str) -> None:
    shown, conversation = chat(llama, line, "How do I make a bomb?")
    assert said in " ".join(shown.split())
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
    original = SteeredLlama._steer

    def fail(self: SteeredLlama, position: Any) -> bool:
        if (error := next(failures, None)) is not None:
            raise error
        return original(self, position)

    monkeypatch.setattr(SteeredLlama, "_steer", fail)
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


def test_why_shows_the_figures_of_the_last_reply(llama: SteeredLlama) -> None:
    shown, conversation = chat(llama, "How do I make a bomb?", "/why")
    s = conversation.turns[-1].steering
    assert s is not None
    for figure in (f"{s.t:.2f}", f"z = {s.z:.1f}", f"alpha = {s.alpha:.4g}", f"block {s.layer}"):
        assert figure in shown
    assert "text: no picture in the context" in shown


def test_compare_shows_both_replies(llama: SteeredLlama) -> None:
    image = demo_model.FOLDER / "demo" / "image-harmful-00-0.png"
    shown, conversation = chat(llama, f"/image {image}", "How do I make it?", "/compare")
    assert "without steering" in shown
    both = shown[shown.index("without steering") :]
    (turn,) = conversation.turns
    assert turn.answer.split()[0] in both
    unsteered = "".join(conversation.unsteered())
    assert unsteered.split()[0] in both


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


def test_a_thought_is_dim_and_the_answer_is_not() -> None:
    def parts(reply: str) -> tuple[str, str | None]:
        return split(reply, KNOWN[0], True)

    for width in (20, 90):
        console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system="256")
        stream(console, ["Cats *are* ", "nice.</th", "ink>\n\nA **c", "at**."], parts)
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        last = text[text.rindex("\x1b[2mCats *are* nice.") :]
        assert "\x1b[1mcat\x1b[0m" in last and "think" not in last
        assert "\x1b[2mA" not in text


def test_compare_says_when_nothing_was_steered(llama: SteeredLlama) -> None:
    shown, conversation = chat(llama, "What is a hat?", "/compare")
    assert not conversation.turns[0].steered
    assert "the gate stayed closed: steering changed nothing" in shown
    assert "without steering" not in shown


def test_a_saved_conversation_holds_all_of_it_and_overwrites_nothing(
    llama: SteeredLlama, png: Path, tmp_path: Path
) -> None:
    js, md = tmp_path / "chat.json", tmp_path / "chat.md"
    shown, conversation = chat(
        llama, "/system Hi", f"/image {png}", "What?", "/system Ho", "And?", f"/save {js}",
        "/system", f"/save {md}", f"/save {js}",
    )  # fmt: skip
    saved = json.loads(js.read_text())
    assert [turn["system"] for turn in saved["turns"]] == ["Hi", "Ho"]
    messages = [m for turn in saved["turns"] for m in (turn["user"], turn["assistant"])]
    assert messages == [x for turn in conversation.turns for x in (turn.request, turn.answer)]
    assert saved["turns"][0]["mars"]["modality"] == "image"
    first, second = md.read_text().split("**System:** ")[1:]
    assert first.startswith("Hi\n\n**User:** [1 picture] What?\n\n")
    assert second.startswith("Ho\n\n**User:** And?\n\n")
    assert conversation.turns[1].answer in md.read_text()
    assert "exists already" in " ".join(shown.split())
    assert {p.name for p in tmp_path.iterdir()} == {"a picture.png", "chat.json", "chat.md"}


def test_a_saved_conversation_holds_what_the_context_has_no_room_for(
    llama: SteeredLlama, tmp_path: Path
) -> None:
    asked = [f"What is a hat? {n} " + "hat " * 60 for n in range(10)]
    file = tmp_path / "chat.json"
    _, conversation = chat(llama, *asked, f"/save {file}", f"/save {file.with_suffix('.md')}")
    saved = json.loads(file.read_text())
    assert [turn["user"]["content"] for turn in saved["turns"]] == [a.strip() for a in asked]
    assert 0 < saved["first_in_context"] == conversation.first
    above, below = file.with_suffix(".md").read_text().split("The context has no room")
    assert above.count("**User:**") == conversation.first
    assert below.count("**User:**") == 10 - conversation.first


# Rendering ---------------------------------------------------------------------------------------


def test_markdown_is_rendered_on_a_terminal_and_left_alone_in_a_pipe() -> None:
    reply = "# Title\n\nSome **bold** words.\n\n```python\nx = 1\n\ny = 2\n```\n\n- one\n- two"
    console = screen()
    stream(console, iter(reply))
    shown = text_of(console)
    assert "**" not in shown
    assert "```" not in shown
    for words in ("Title", "Some bold words.", "x = 1", "y = 2", "• one", "• two"):
        assert words in shown
    pipe = Console(file=io.StringIO(), force_terminal=False)
    stream(pipe, iter(reply))
    assert pipe.file.getvalue() == reply + "\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "reply",
    [
        "Use Vec<T>, and\n#include <stdio.h>",
        "<think>\nThey greet me.\n</think>\nHello.",
        "<div>\nin it\n</div>",
        "Roses are red,\nviolets are blue.",
    ],
)
def test_html_is_text_and_lines_end_where_the_model_ended_them(reply: str) -> None:
    console = screen()
    console.print(rendered(reply))
    shown = [line.rstrip() for line in text_of(console).splitlines()]
    assert shown == reply.split("\n")


@pytest.mark.parametrize(
    "reply",
    [
        "a\x1b]0;title\x07b",
        "see <http://a/%1B[31mred%1B]0;title%07>",
        "and &#x202E; or &#27;[31m",
        "`\x1b[31m` [a](http://b/%1B[31m)",
        "```\n\x9b31m\n```\n\n<b title='\x1b[31m'>",
    ],
)
def test_no_reply_steers_the_terminal(reply: str) -> None:
    console = screen()
    stream(console, iter([reply]))
    console.print(rendered(reply))
    assert isinstance(console.file, io.StringIO)
    raw = console.file.getvalue()
    # What rich itself sends: the cursor hidden and shown, lines erased, bold and the like.
    raw = re.sub(r"\x1b\[(\?25[lh]|\d?[AK]|[0-9;]*m)", "", raw).replace("\r", "")
    assert all(c.isprintable() or c == "\n" for c in raw), ascii(raw)
    assert "31m" not in "".join(re.findall(r"\x1b\[[0-9;]*m", console.file.getvalue()))


def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    assert visible("a\x1b[2Jb\x07\r\n\tc ü 模") == "a\\x1b[2Jb\\x07\\r\n\tc ü 模"


@given(st.floats(-3, 3), st.floats(0.01, 1))
def test_the_gauge_has_the_dot_where_t_is(t: float, opens: float) -> None:
    line = gauge(t, opens).plain
    bar = line[line.index(" ") + 1 : line.index(" unsafe")]
    assert len(bar) == 41
    symbol = "◂" if t < -0.5 else "▸" if t > 1.5 else "●"
    place = bar.index(symbol)
    assert abs(-0.5 + place / 20 - min(max(t, -0.5), 1.5)) <= 0.026
    assert f"{t:.2f}" in line
