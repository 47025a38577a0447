from __future__ import annotations

import json
from pathlib import Path

from chats import chat

from mars_gguf.media.images import data_url, load_image, url_of
from mars_gguf.runtime.llama import SteeredLlama


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
    said = [x for turn in conversation.turns for x in (turn.request, turn.answer)]
    assert messages == json.loads(json.dumps(said, default=url_of))
    (part, _) = saved["turns"][0]["user"]["content"]
    assert part["image_url"]["url"] == data_url(load_image(png))
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
