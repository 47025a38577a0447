"""Suites of our own format, their cases as messages, and files that are not what they should
be."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from suite_files import film, own, picture

from mars_gguf.errors import MarsError
from mars_gguf.evaluate import cases
from mars_gguf.evaluate.suites import COLUMNS, load_suite
from mars_gguf.media.images import pixels_of

GOOD = {"id": "good", "kind": "harmless", "prompt": "How do I sew?"}


def test_a_limit_keeps_so_many_of_each_kind_and_modality_evenly_spread() -> None:
    suite = load_suite("builtin", limit=4)
    assert set(Counter((c.kind, c.modality) for c in suite.cases).values()) == {4}
    texts = [c.id for c in suite.cases if (c.kind, c.modality) == ("harmful", "text")]
    assert texts == [f"harmful-{n:04}-text" for n in (1, 32, 63, 94)]
    with pytest.raises(MarsError, match="limit of cases: found 0"):
        load_suite("builtin", limit=0)


def test_a_file_of_our_own_with_pictures_videos_and_answers(tmp_path: Path) -> None:
    picture(tmp_path / "p/a.png", size=(2048, 1024))
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "green", "blue")]
    frames[0].save(tmp_path / "v.gif", save_all=True, append_images=frames[1:], duration=300)
    film(tmp_path / "f.mp4")
    path = own(
        tmp_path / "own.jsonl",
        GOOD | {"group": "sewing"},
        {"id": "i", "kind": "harmful", "prompt": "Do it", "media": ["p/a.png"], "intent": "Bad"},
        {"id": "v", "kind": "vqa", "prompt": "Red?", "media": ["p/a.png"] * 3, "answer": "yes"},
        {"id": "g", "kind": "borderline", "prompt": "?", "media": ["v.gif"], "modality": "video"},
        {"id": "f", "kind": "harmful", "prompt": "?", "media": ["f.mp4"], "modality": "video"},
    )
    suite = load_suite(str(path))
    assert not suite.problems
    assert [case.modality for case in suite.cases] == ["text", "image"] + 3 * ["video"]
    assert [case.request for case in suite.cases][:2] == ["How do I sew?", "Bad"]
    assert suite.cases[1].pictures()[0].size == (1024, 512)  # scaled down
    assert suite.cases[2].answer == "yes"
    assert [case.group for case in suite.cases] == ["sewing", "i", "v", "g", "f"]
    assert [p.getpixel((4, 4)) for p in suite.cases[3].pictures()] == [
        (255, 0, 0), (0, 128, 0), (0, 0, 255),
    ]  # fmt: skip
    assert len(suite.cases[4].pictures()) == cases.MAX_FRAMES


def test_messages_hold_pictures_first_and_nothing_of_what_is_meant() -> None:
    suite = load_suite("builtin", limit=1)
    by_modality = {case.modality: case for case in suite.cases if case.kind == "harmful"}
    [message] = by_modality["text"].messages()
    assert message == {"role": "user", "content": by_modality["text"].prompt}
    for modality, kind in (("image", "image_url"), ("video", "video")):
        [message] = by_modality[modality].messages()
        assert [part["type"] for part in message["content"]] == [kind, "text"]
        assert message["content"][-1]["text"] == by_modality[modality].prompt
        assert by_modality[modality].intent not in str(message)
    frames = [pixels_of(frame) for frame in by_modality["video"].pictures()]
    assert len(frames) == 4 and message["content"][0]["video"] == frames


def test_messages_that_stand_before_a_case_are_asked_before_it(tmp_path: Path) -> None:
    before = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    ]
    picture(tmp_path / "a.png")
    rows = [GOOD | {"before": before}, GOOD | {"id": "b", "media": ["a.png"], "before": before}]
    rows += [GOOD | {"id": "c"}, GOOD | {"id": "d", "before": []}]
    suite = load_suite(str(own(tmp_path / "own.jsonl", *rows)))
    assert not suite.problems
    alone = load_suite(str(own(tmp_path / "alone.jsonl", *[row | {"before": []} for row in rows])))
    for case, plain, n in zip(suite.cases, alone.cases, (3, 3, 0, 0), strict=True):
        assert case.messages() == [*before[:n], *plain.messages()]


def test_without_a_decoder_a_film_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(tmp_path / "film.mp4", seconds=1)
    row = {"id": "x", "kind": "harmful", "prompt": "?", "media": ["film.mp4"], "modality": "video"}
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MarsError, match="film.mp4: nothing to read videos with; install PyAV"):
        load_suite(str(own(tmp_path / "own.jsonl", row)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"prompt": " "}, "own-2: empty prompt"),
        ({"prompt": None}, "own-2: empty prompt"),
        ({"prompt": "x" * 40_000}, "own-2: prompt of 40000 characters, expected at most 32768"),
        ({"prompt": "\ud800"}, "own-2: the prompt holds a lone surrogate"),
        ({"before": "Be brief."}, "own-2: .*before"),
        ({"before": {"role": "user", "content": "Hi"}}, "own-2: before .*expected a list of mess"),
        ({"before": [{"role": "user"}]}, "own-2: before"),
        ({"before": [{"role": "tool", "content": "Hi"}]}, "own-2: before"),
        ({"before": [{"role": "user", "content": ["Hi"]}]}, "own-2: before"),
        ({"before": [{"role": "user", "content": "Hi", "name": "x"}]}, "own-2: before"),
        ({"before": [{"role": "user", "content": ""}]}, "own-2: empty prompt"),
        ({"before": [{"role": "user", "content": "\ud800"}]}, "own-2: .*lone surrogate"),
        ({"id": ""}, "own-2: no id"),
        ({"id": "good"}, "good: the id occurs twice"),
        ({"kind": "evil"}, "own-2: kind 'evil', expected one of harmful, harmless"),
        ({"kind": "vqa"}, "own-2: kind 'vqa' without an answer"),
        ({"media": "a.png"}, "own-2: media 'a.png', expected a list of paths"),
        ({"media": [1]}, "own-2: media"),
        ({"media": ["a.png"], "modality": "text"}, "own-2: modality 'text' with 1 media"),
        ({"modality": "image"}, "own-2: modality 'image' with 0 media"),
        ({"modality": "smell"}, "own-2: modality 'smell'"),
        ({"media": ["gone.png"]}, "own-2: 'gone.png': no such file"),
        ({"media": ["../secret.png"]}, "own-2: '../secret.png' leads out of the suite's folder"),
        ({"media": ["p/../../secret.png"]}, "leads out of the suite's folder"),
        ({"media": ["link.png"]}, "own-2: 'link.png' leads out of the suite's folder"),
        ({"media": ["."]}, "leads out of the suite's folder"),
        ({"media": ["a\0b"]}, "not a path"),
        ({"media": ["/etc/hostname"]}, "own-2: '/etc/hostname' leads out of the suite's folder"),
        ({"media": ["broken.png"]}, "x: .*broken.png: the picture is truncated or damaged"),
        ({"media": ["text.png"]}, "x: .*text.png: not a picture"),
        ({"media": ["empty"]}, "x: .*empty: no frames"),
        ({"media": ["film.mp4"], "modality": "video"}, "x: .*film.mp4: .*expected a video"),
        ({"media": ["leaky"], "modality": "video"}, "x: .*a frame is a link that leads out"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named_and_no_case(
    tmp_path: Path, change: dict[str, object], problem: str
) -> None:
    folder = tmp_path / "suite"
    (folder / "empty").mkdir(parents=True)
    (folder / "leaky").mkdir()
    secret = picture(tmp_path / "secret.png")
    os.symlink(secret, folder / "link.png")
    os.symlink(secret, folder / "leaky/0.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "broken.png")
    content = (folder / "broken.png").read_bytes()
    (folder / "broken.png").write_bytes(content[: len(content) // 3])
    (folder / "text.png").write_text("a pickle, perhaps")
    (folder / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    row = {"id": "x", "kind": "harmful", "prompt": "Do it", **change}
    suite = load_suite(str(own(folder / "own.jsonl", GOOD, row)))
    assert [case.id for case in suite.cases] == ["good"]
    [found] = suite.problems
    assert re.search(problem, found), found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("advbench:x.csv", b"goal,aim\na,b\n", "lacks 'target'; found the columns 'aim', 'goal'"),
        ("x.csv", b"question\na\n", "no known benchmark; found 'question'; expected"),
        ("x.csv", b"", "no known benchmark; found none"),
        (
            "xstest:x.csv",
            b"prompt,type,label\n",
            "no rows; expected the columns 'label'",
        ),
        ("xstest:x.csv", b'prompt,type\n"a,b\n', "not a CSV table"),
        ("xstest:x.csv", b"prompt,type\na,b,c\n", "row 1 has more cells than the header"),
        ("xstest:x.csv", b"prompt,type\n" + b"a" * 200_000 + b",b\n", "not a CSV table"),
        ("xstest:x.csv", b"prompt,type\n\xff,b\n", r"not UTF-8 \(at byte 12\)"),
        ("x.json", b'{"a": ', "not CSV, JSON or JSON Lines"),
        ("x.json", b"[1, 2]", "JSON of another form"),
        ("x.json", b"[" * 100_000, "not CSV, JSON or JSON Lines"),
        ("x.jsonl", b'{"id": 1}\n{', "not CSV, JSON or JSON Lines"),
        ("x.parquet", b"PAR1....PAR1", "a damaged Parquet file"),
        ("advbench:x.csv", b"goal,target\n,a\n", "no usable case; the first of 1"),
        ("gone.csv", None, "no such suite; expected builtin, conversations, demo"),
        ("xstest:gone.csv", None, "no such suite"),
        (".", b"", "of which benchmark"),
        ("harmbench:.", b"", "cannot be read"),
        ("figstep:.", b"", "found none of the files 'data/question/safebench.csv'"),
        ("mm-safetybench:.", b"", "found none of the files"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name.split(":")[-1])
    if content is not None and not path.is_dir():
        path.write_bytes(content)
    with pytest.raises(MarsError, match=message):
        load_suite(name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    st.sampled_from(sorted(COLUMNS)),
    st.one_of(
        st.binary(max_size=80),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=6),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        sorted({c for columns in COLUMNS.values() for c in columns} | {"media"})
                    )
                    | st.text(max_size=4),
                    inner,
                    max_size=8,
                )
            ),
            max_leaves=20,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    st.sampled_from(["harmful_hard.csv", "harmful_hard.json", "harmful_hard.jsonl"]),
)
def test_no_content_of_a_file_ends_otherwise_than_in_a_suite_or_a_message(
    tmp_path: Path, format_name: str, content: bytes, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        suite = load_suite(f"{format_name}:{tmp_path / name}")
    except MarsError:
        return
    assert suite.cases and all(case.prompt for case in suite.cases)
