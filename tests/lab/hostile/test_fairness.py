"""How long honest clients wait beside hostile ones."""

from __future__ import annotations

import pytest

from lab.hostile import fairness
from lab.hostile.fairness import a_round, main
from lab.hostile.serving import served


def test_honest_clients_have_replies_beside_hostile_ones() -> None:
    with served("--turn_timeout", "1") as server:
        for hostile in (False, True):
            waited = a_round(server, hostile, 2.0)
            assert waited and min(waited) > 0
        assert server.lives


def test_the_command_says_how_much_longer_they_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = {False: [1.0, 1.0, 1.0], True: [1.0, 2.0, 1.2]}
    monkeypatch.setattr(fairness, "a_round", lambda _, hostile, seconds: waits[hostile])
    main(["--rounds", "1"])
    said = capsys.readouterr().out
    assert "| four hostile ones | 3 | 1400 | 1200 |" in said and "1.40 times" in said
    waits[True] = [2.0, 2.0]
    with pytest.raises(SystemExit):
        main(["--rounds", "1"])
