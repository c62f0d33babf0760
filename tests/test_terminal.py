"""What is shown on a terminal: nothing in a text steers it, and no encoding ends a command."""

import io
import json
import sys

import pytest
from rich.console import Console

from medcot import terminal
from medcot.cli.exit_codes import exit_on_error
from medcot.cli.progress import TerminalListener, make_console
from medcot.errors import InputError
from medcot.hardware.machine import detect_machine

VERDICT = "Test loss fell by −0.020 × 3 … improved: 改善 \u00e9"


NARROW = ["gbk", "cp1252", "big5", "ascii", "latin-1", "cp437", "cp850"]


class NarrowConsole:
    """Stdout and stderr of a console that knows few characters."""

    def __init__(self, encoding, monkeypatch):
        self.encoding = encoding
        self.streams = {n: io.TextIOWrapper(io.BytesIO(), encoding) for n in ("stdout", "stderr")}
        for name, stream in self.streams.items():
            monkeypatch.setattr(sys, name, stream)

    def shown(self, name="stdout"):
        self.streams[name].flush()
        return self.streams[name].buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", NARROW)
def test_no_encoding_ends_a_command(encoding, monkeypatch):
    console = NarrowConsole(encoding, monkeypatch)
    terminal.say(VERDICT)
    with TerminalListener(make_console()).live() as listener:
        listener.stage("before")
        listener.say(VERDICT)
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise InputError("--dataset 数据…", "found −1", "expected 1")
    assert ended.value.code == 2
    signs = str.maketrans({"−": "-", "×": "x"})
    shown = console.shown().translate(signs).replace("…", "...")
    assert shown.count("by -0.020 x 3 ... improved") == 2
    assert "score before" in shown
    assert "found -1; expected 1" in console.shown("stderr").translate(signs)


@pytest.mark.parametrize("encoding", NARROW)
def test_json_has_the_same_values_in_every_encoding(encoding, monkeypatch):
    console = NarrowConsole(encoding, monkeypatch)
    terminal.write_json({"verdict": VERDICT})
    assert json.loads(console.shown()) == {"verdict": VERDICT}


STEERING = ["\x1b[2J", "\x9b2J", "\r", "\x08", "\x07", "\u202e", "\u2066", "\U000e0041", "\udcff"]


@pytest.mark.parametrize("char", STEERING)
def test_what_steers_a_terminal_is_escaped_everywhere(char, capsys):
    terminal.say(f"a{char}b")
    terminal.write(f"a{char}b")
    terminal.write_json({f"a{char}b": 1})
    with pytest.raises(SystemExit), exit_on_error():
        raise InputError(f"data a{char}b", f"found a{char}b", f"expected a{char}b")
    file = io.StringIO()
    TerminalListener(Console(file=file)).say(f"a{char}b")
    printed = capsys.readouterr()
    for text in (printed.out, printed.err, file.getvalue()):
        assert r"a\u" in text or char.isspace()
        assert char[0] not in text


def test_an_escaped_key_of_json_is_the_same_key(capsys):
    terminal.write_json({"a\u202eb\x9b": 1})
    assert json.loads(capsys.readouterr().out) == {"a\u202eb\x9b": 1}


def test_visible_text_of_any_script_stays(capsys):
    text = "患者\u3000男\tשלום 👩\u200d⚕️ naïve\n第二行"
    terminal.say(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_a_line_of_a_megabyte_is_cut(capsys):
    terminal.say("x" * 1_000_000 + "\nnext")
    first, second, _ = capsys.readouterr().out.split("\n")
    assert len(first) == terminal.LONGEST_LINE
    assert (first[-1], second) == ("…", "next")


@pytest.mark.parametrize("count", ["²", "٣x", "-2", "", "9" * 5000])
def test_a_number_of_processes_that_is_none_counts_as_one(count, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", count)
    assert detect_machine().processes == 1
