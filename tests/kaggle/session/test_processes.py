"""Commands of a session: stopped as by a person, and one for each GPU, side by side."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from medcot.credentials import Redactor, Secret
from medcot.kaggle.session import launch
from medcot.kaggle.session.subprocesses import ExitStatus, run_command
from tests.support.kaggle_scripts import Lines

pytest_plugins = ["tests.support.kaggle_fixtures"]


def test_a_command_is_interrupted_as_by_a_person_and_given_time(lines: Lines) -> None:
    code = (
        "import sys, time\n"
        "print('started', flush=True)\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('saved', flush=True); sys.exit(130)\n"
    )
    ended = run_command([sys.executable, "-c", code], lines, seconds=3.0)
    assert (ended.code, ended.stopped) == (130, True)
    assert lines == ["started", "saved"]


def test_a_command_that_does_not_end_is_ended(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medcot.kaggle.session.subprocesses.INTERRUPT_GRACE_S", 0.2)
    monkeypatch.setattr("medcot.kaggle.session.subprocesses.TERMINATE_GRACE_S", 0.2)
    code = "import signal, time\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\n"
    code += "print('deaf', flush=True)\ntime.sleep(60)"
    began = time.monotonic()
    ended = run_command([sys.executable, "-c", code], lines, seconds=3.0)
    assert (ended.code, ended.stopped) == (128 + signal.SIGKILL, True)
    assert time.monotonic() - began < 20


def test_a_commands_lines_are_redacted(lines: Lines) -> None:
    redact = Redactor([Secret("KEY", "s3cret-value")])
    run_command(["echo", "the s3cret-value"], lambda line: lines(redact(line)))
    assert lines == ["the [hidden: KEY]"]


def both(lines: Lines, code: str, seconds: float | None = None) -> ExitStatus:
    """How two processes of ``code`` ended, each with its number in RANK."""
    command = [sys.executable, "-m", "medcot.kaggle.session.launch", "2", "-c", code]
    return run_command(command, lines, seconds=seconds)


def test_each_process_learns_its_number_and_how_to_find_the_others(lines: Lines) -> None:
    code = (
        "import os; e = os.environ\n"
        "names = 'RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT'.split()\n"
        "os.write(1, (' '.join(e[name] for name in names) + '\\n').encode())"
    )
    assert both(lines, code) == ExitStatus(0, stopped=False)
    first, second = sorted(line.split() for line in lines)
    assert (first[:4], second[:4]) == (["0", "0", "2", "127.0.0.1"], ["1", "1", "2", "127.0.0.1"])
    assert first[4] == second[4]


def test_both_have_the_time_to_save_that_an_interrupted_run_has(lines: Lines) -> None:
    code = (
        "import os, sys, time\n"
        "try:\n    os.write(1, b'started\\n'); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.5)\n"
        "    os.write(1, f\"saved {os.environ['RANK']}\\n\".encode()); sys.exit(130)\n"
    )
    assert both(lines, code, seconds=4.0) == ExitStatus(130, stopped=True)
    assert sorted(lines) == ["saved 0", "saved 1", "started", "started"]


def test_the_exit_code_is_that_of_the_first_that_failed(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert both(lines, "import sys; sys.exit(2)").code == 2
    monkeypatch.setattr(launch, "EXIT_GRACE_S", 0.2)
    code = (
        "import os, signal, time\n"
        "if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(60)\n"
    )
    # The other is stuck, and is ended after a grace period.
    began = time.monotonic()
    assert launch.wait_for(launch.start(["-c", code], 2)) == 128 + signal.SIGKILL
    assert time.monotonic() - began < 30
