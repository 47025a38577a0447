from __future__ import annotations

import io
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_gguf.console import command, printable, require_utf8, visible
from mars_gguf.errors import MarsError, SteeringError, VectorError


@given(st.text())
def test_no_text_steers_the_terminal_and_what_people_write_is_left_alone(text: str) -> None:
    assert printable(text).isprintable()
    assert all(c.isprintable() or c in "\n\t" for c in visible(text))
    if text.isprintable():
        assert printable(text) == visible(text) == text


def test_control_characters_are_shown_and_lines_and_tabs_stay() -> None:
    assert visible("a\x1b[2Jb\x07\r\n\tc ü 模") == "a\\x1b[2Jb\\x07\\r\n\tc ü 模"
    assert printable("a\n\tb") == "a\\n\\tb"


def test_bytes_that_are_not_utf8_are_refused_by_name() -> None:
    assert require_utf8("über", "a name") == "über"
    text = b"caf\xe9".decode(errors="surrogateescape")
    with pytest.raises(MarsError, match=r"a name: found b'\\xe9', expected UTF-8; convert it"):
        require_utf8(text, "a name")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MarsError("found this,\nexpected that"), 2, "error: found this,\nexpected that\n"),
        (VectorError("key \x1b[2Jmars\x9b\r\x07 ü"), 2, "error: key \\x1b[2Jmars\\x9b\\r\\x07 ü\n"),
        (FileNotFoundError(2, "no such file"), 2, "error: [Errno 2] no such file\n"),
        (SteeringError("lost"), 1, "error: lost\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
    ],
)
def test_a_command_ends_with_a_message_and_a_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, command():
        raise error
    assert ended.value.code == code
    assert capsys.readouterr() == ("", said)


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), command():
        print(1 / 0)


def test_what_standard_output_cannot_show_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    with command():
        print("crème")
    assert written.getvalue() == b"cr?me\n"


def test_a_reader_that_goes_away_ends_the_command_without_a_word() -> None:
    code = (
        "from mars_gguf.console import command\nwith command():\n for _ in range(10**6): print(1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"1\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_errors_are_an_attribute_of_the_package_that_brings_no_llama_cpp() -> None:
    code = (
        "import sys, mars_gguf\n"
        "assert issubclass(mars_gguf.errors.VectorError, mars_gguf.errors.MarsError)\n"
        "assert 'llama_cpp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
