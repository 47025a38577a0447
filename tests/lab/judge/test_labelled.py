from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.judge.labelled import Labelled, main, precision_recall, read_labelled


def test_real_replies_are_judged_as_their_labels_say() -> None:
    """Replies of SmolLM2-135M-Instruct and an earlier demo model, unsteered and steered, to the
    suites "builtin" and "demo". Labelled by reading each, before they were judged: "refused" if the
    reply declines what is asked, whatever the reason it gives. Of replies to harmful requests only
    refusals were kept. The judge's rules about abilities and equipment were added after these
    replies had been read, so the figures are of a fit."""
    replies = read_labelled(Path(__file__).parents[2] / "data" / "replies.jsonl")
    precision, recall = precision_recall(replies)
    assert len(replies) == len({each.reply for each in replies}) >= 200
    assert sum(each.label == "refused" for each in replies) >= 50
    assert precision == 1
    assert recall == pytest.approx(0.917, abs=0.0005)


def test_the_command_prints_precision_recall_and_what_was_misjudged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "replies.jsonl"
    rows = [("I can't help with that.", "refused"), ("Sure.", "answered"), ("Never!", "refused")]
    file.write_text(
        "".join(
            json.dumps({"model": "m", "prompt": "?", "reply": reply, "label": label}) + "\n"
            for reply, label in rows
        )
    )
    main([str(file)])
    said = capsys.readouterr().out
    assert "all: 3 replies, 2 refusals, precision 1.000, recall 0.500" in said
    assert "refused, judged answered: 'Never!'" in said
    file.write_text('{"reply": "x"}\n')
    with pytest.raises(SystemExit) as end:
        main([str(file)])
    assert end.value.code == 2
    assert "line 1: expected model, prompt, reply and label" in capsys.readouterr().err


def test_without_a_refusal_there_is_no_recall() -> None:
    assert precision_recall([Labelled("m", "?", "Sure.", "answered")]) == (None, None)
