"""Waiting for a version: that one only, its log once, and patience with everything else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from medcot.errors import RunFailed
from medcot.kaggle.client import connection
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.api_types import SessionStatus
from medcot.kaggle.client.connection import read_log
from medcot.kaggle.client.push_state import PushRecord
from medcot.kaggle.client.wait import LAST_TRIES, FinalStatus, final_status, wait
from medcot.runs.directory import RunDirectory
from tests.support.kaggle_scripts import CONFIG, Lines, end_session, idle_session
from tests.support.kaggle_server import KaggleServer
from tests.support.kaggle_session import Session

pytest_plugins = ["tests.support.kaggle_fixtures"]
REF = "ann/medcot-fine-tuning"


def save(kaggle: KaggleServer, checksum: str) -> PushRecord:
    """A version on Kaggle that claims to hold the bundle ``checksum``."""
    text = f'\nBUNDLE = "{checksum}"\n'
    kaggle.answer("SaveKernel", {"slug": REF, "newTitle": "medcot fine-tuning", "text": text})
    version = len(kaggle.kernels[REF])
    return PushRecord(REF, checksum, 1, "2026-01-01T00:00:00+00:00", version)


@pytest.fixture
def running(kaggle: KaggleServer) -> tuple[PushRecord, Session]:
    kaggle.start = idle_session
    return save(kaggle, "a" * 64), kaggle.kernels[REF][-1]


Step = tuple[Callable[[], bool], Callable[[], object]]


def in_turn(*steps: Step) -> None:
    """Do each step's action once its condition holds, beside the test."""

    def act() -> None:
        for holds, action in steps:
            while not holds():
                time.sleep(0.01)
            action()

    threading.Thread(target=act, daemon=True).start()


def after(seconds: float) -> Callable[[], bool]:
    """A condition that holds ``seconds`` after it was first asked for."""
    since: list[float] = []

    def holds() -> bool:
        since.append(time.monotonic())
        return since[-1] >= since[0] + seconds

    return holds


@pytest.mark.parametrize(
    ("status", "message", "ending"),
    [
        ("COMPLETE", "", FinalStatus.DONE),
        ("ERROR", "exit code 1", FinalStatus.FAILED),
        ("ERROR", "Your notebook was stopped because it exceeded the max allowed execution "
         "duration", FinalStatus.TIMED_OUT),
        ("CANCEL_ACKNOWLEDGED", "", FinalStatus.CANCELLED),
        ("CANCEL_ACKNOWLEDGED", "Session timed out", FinalStatus.TIMED_OUT),
    ],
)  # fmt: skip
def test_each_ending_has_its_own_exit_code(
    running: tuple[PushRecord, Session],
    account: Account,
    lines: Lines,
    status: str,
    message: str,
    ending: FinalStatus,
) -> None:
    push, session = running
    session.end(status, message)
    assert wait(account, push, lines, interval=0.01) == (ending, message)
    assert [each.value for each in FinalStatus] == [0, 1, 3, 4]


def test_a_session_that_goes_on_has_not_ended() -> None:
    for word in ("QUEUED", "RUNNING", "CANCEL_REQUESTED"):
        assert final_status(SessionStatus(word, "")) is None


def test_an_older_complete_version_is_not_taken_for_the_pushed_one(
    kaggle: KaggleServer, account: Account, lines: Lines
) -> None:
    save(kaggle, "0" * 64)
    kaggle.start = idle_session
    push = save(kaggle, "a" * 64)
    new = kaggle.kernels[REF][-1]
    assert wait(account, push, lines, interval=0.01, limit_s=0.1)[0] is FinalStatus.TIMED_OUT
    assert new.running
    end_session(new, {}, status="ERROR")
    assert wait(account, push, lines, interval=0.01)[0] is FinalStatus.FAILED
    assert {c["versionLabel"] for c in kaggle.calls_of("GetKernelSessionStatus")} == {"v2"}


def test_a_version_pushed_over_by_a_newer_one_is_still_the_one_waited_for(
    kaggle: KaggleServer, account: Account, lines: Lines, running: tuple[PushRecord, Session]
) -> None:
    push, session = running
    session.end("ERROR", "exit code 1")
    save(kaggle, "b" * 64)
    assert wait(account, push, lines, interval=0.01) == (FinalStatus.FAILED, "exit code 1")


def test_the_live_log_is_shown_as_it_comes(
    account: Account, lines: Lines, running: tuple[PushRecord, Session]
) -> None:
    push, session = running
    shown = Lines()
    session.say(f"medcot bundle {push.checksum}\n")
    in_turn(
        (lambda: len(shown) == 1, lambda: session.say("step 1\nstep 2\n")),
        (lambda: "step 2" in shown, lambda: session.say("half a li")),
        (after(0.1), lambda: session.say("ne\nno end")),
        (lambda: "half a line" in shown, lambda: session.end("COMPLETE")),
    )
    assert wait(account, push, lines, shown, interval=0.01)[0] is FinalStatus.DONE
    assert shown == [
        f"medcot bundle {push.checksum}", "step 1", "step 2", "half a line", "no end",
    ]  # fmt: skip


@pytest.mark.parametrize("ended", [False, True], ids=["while it runs", "after its end"])
def test_a_log_that_is_cut_and_replayed_is_shown_once(
    kaggle: KaggleServer,
    account: Account,
    lines: Lines,
    running: tuple[PushRecord, Session],
    ended: bool,
) -> None:
    push, session = running
    shown = Lines()
    for number in range(10):
        session.say(f"line {number}\n")
    for events in (3, 0, 5, 5, 8):
        kaggle.fail("logs", cut_after=events)
    kaggle.fail("logs", status=503)
    kaggle.fail("logs", status=429, headers={"Retry-After": "1"})
    all_done = [lambda: not any(fault.times for fault in kaggle.faults), lambda: True][ended]
    in_turn((all_done, lambda: session.end("COMPLETE")))
    assert wait(account, push, lines, shown, interval=0.01)[0] is FinalStatus.DONE
    assert shown == [f"line {number}" for number in range(10)]


def test_a_silent_log_does_not_hold_up_the_wait(
    account: Account,
    lines: Lines,
    running: tuple[PushRecord, Session],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "READ_S", 0.1)
    push, session = running
    shown = Lines()
    session.say("before the silence\n")
    in_turn(
        (lambda: len(shown) == 1, lambda: None),
        (after(0.3), lambda: session.say("after it\n")),
        (lambda: len(shown) == 2, lambda: session.end("COMPLETE")),
    )
    assert wait(account, push, lines, shown, interval=0.01)[0] is FinalStatus.DONE
    assert shown == ["before the silence", "after it"]


def test_the_log_of_another_version_is_not_shown(
    account: Account, lines: Lines, running: tuple[PushRecord, Session]
) -> None:
    push, session = running
    shown = Lines()
    session.say(f"medcot bundle {'f' * 64}\n")
    session.say("not ours\n")
    in_turn((after(0.1), lambda: session.end("COMPLETE")))
    wait(account, push, lines, shown, interval=0.01)
    assert shown == []


def test_waiting_bears_bursts_of_429_and_5xx_and_lost_connections(
    kaggle: KaggleServer,
    account: Account,
    lines: Lines,
    running: tuple[PushRecord, Session],
    naps: list[float],
) -> None:
    push, session = running
    kaggle.fail("GetKernelSessionStatus", status=429, headers={"Retry-After": "9"})
    kaggle.fail("GetKernelSessionStatus", status=503, times=4)
    kaggle.fail("GetKernelSessionStatus", cut_after=0, times=2)
    session.end("COMPLETE")
    assert wait(account, push, lines, interval=0.01)[0] is FinalStatus.DONE
    assert naps[0] == 9.0
    assert naps[1:] == sorted(naps[1:])


def test_an_answer_that_is_cut_in_its_middle_is_asked_for_again(
    kaggle: KaggleServer, account: Account, lines: Lines, running: tuple[PushRecord, Session]
) -> None:
    push, session = running
    kaggle.fail("GetKernelSessionStatus", carry_out=True, cut_after=5, times=2)
    session.end("COMPLETE")
    assert wait(account, push, lines, interval=0.01)[0] is FinalStatus.DONE
    assert len(kaggle.calls_of("GetKernelSessionStatus")) == 3


def test_a_log_that_cannot_be_had_does_not_delay_the_end(
    kaggle: KaggleServer,
    account: Account,
    lines: Lines,
    running: tuple[PushRecord, Session],
) -> None:
    push, session = running
    kaggle.fail("logs", status=503, times=1000)
    in_turn((lambda: bool(kaggle.calls_of("logs")), lambda: session.end("COMPLETE")))
    assert wait(account, push, lines, Lines(), interval=0.01)[0] is FinalStatus.DONE
    # Once or a few times while the session runs, then LAST_TRIES: the log is never waited for.
    assert len(kaggle.calls_of("logs")) < 10 * LAST_TRIES


def test_a_version_that_has_no_session_yet_is_waited_for(
    kaggle: KaggleServer, account: Account, lines: Lines, running: tuple[PushRecord, Session]
) -> None:
    push, session = running
    kaggle.fail("GetKernelSessionStatus", status=404, times=5)
    session.end("COMPLETE")
    assert wait(account, push, lines, interval=0.01)[0] is FinalStatus.DONE


def test_a_version_that_kaggle_never_heard_of_is_an_error(
    kaggle: KaggleServer, account: Account, lines: Lines
) -> None:
    kaggle.fail("GetKernelSessionStatus", status=404, times=1000)
    with pytest.raises(RunFailed, match="does not know version 7"):
        wait(account, PushRecord(REF, "a", 1, "", 7), lines, interval=100)


def test_status_changes_are_said_once(
    account: Account, lines: Lines, running: tuple[PushRecord, Session]
) -> None:
    push, session = running
    session.status = "QUEUED"
    in_turn(
        (lambda: len(lines) == 1, lambda: setattr(session, "status", "RUNNING")),
        (lambda: len(lines) == 2, lambda: session.end("COMPLETE")),
    )
    wait(account, push, lines, interval=0.01)
    assert lines == ["version 1: queued", "version 1: running"]


def test_a_log_is_read_as_json_or_as_text() -> None:
    assert list(read_log('[{"data": "a\\n"}, {"stream_name": "x"}, 3]')) == ["a\n"]
    assert list(read_log("plain\ntext")) == ["plain\n", "text\n"]


def test_state_is_read_from_the_run_directory(run: RunDirectory) -> None:
    from medcot.errors import InputError
    from medcot.kaggle.client.push_state import last_push

    run.create(CONFIG)
    with pytest.raises(InputError, match="nothing was pushed"):
        last_push(run)
