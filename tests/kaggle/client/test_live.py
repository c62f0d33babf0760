"""A live twin: from the log of a kernel come the same stages and steps as from a run here."""

from __future__ import annotations

import io
import json
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from medcot.catalog import Message
from medcot.cli.curve import draw_curve
from medcot.cli.progress import TerminalListener, WatchListener
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.build import KernelOptions, build
from medcot.kaggle.client.live import LogReader
from medcot.kaggle.client.push_state import PushRecord
from medcot.kaggle.client.wait import FinalStatus, wait
from medcot.kaggle.session.step_lines import read_step, steps_shown, write_step
from medcot.listener import Listener
from medcot.notebook import kaggle_panel
from medcot.notebook.views.training import show_job
from medcot.records import Event
from medcot.runs.directory import RunDirectory
from tests.support.kaggle_scripts import CONFIG, Lines, end_session, idle_session
from tests.support.kaggle_server import USER, KaggleServer
from tests.support.kaggle_session import Session

pytest_plugins = ["tests.support.kaggle_fixtures"]
REF = f"{USER}/medcot-fine-tuning"
STEPS = 30


def event(step: int, loss: float | None = None) -> Event:
    known = round(4.0 - step / 10, 3) if loss is None else loss
    rate = float(f"{5e-4 / step:.6g}")  # what a line of the log keeps
    return Event(step, STEPS, known, rate, 0.5, 750 * step, 36.125, 1.59, 10.0)


def log_lines() -> list[str]:
    """What a kernel prints: its own lines, those of `medcot run`, and one for each step."""
    plain = io.StringIO()
    listener = TerminalListener(Console(file=plain, soft_wrap=True))
    with listener.live():
        listener.say("preset demo")
        listener.stage("before")
        listener.progress(3, 3)
        listener.stage("training")
        listener.event(event(STEPS))
        listener.stage("after")
        listener.progress(3, 3)
        listener.stage("report")
    lines = plain.getvalue().splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("train …")) + 1
    steps = [write_step(asdict(event(step))) for step in range(1, STEPS + 1)]
    return [*lines[:at], *steps, *lines[at:]]


class Record(Listener):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.events: list[Event] = []
        self.rows: list[tuple[int, int]] = []
        self.said: list[str] = []

    def say(self, line: str | Message) -> None:
        self.said.append(str(line))

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def progress(self, done: int, total: int) -> None:
        self.rows.append((done, total))

    def event(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def running(kaggle: KaggleServer, run: RunDirectory) -> tuple[PushRecord, Session]:
    kaggle.start = idle_session
    text = f'BUNDLE = "{"a" * 64}"\n'
    kaggle.answer("SaveKernel", {"slug": REF, "newTitle": "medcot fine-tuning", "text": text})
    return PushRecord(REF, "a" * 64, 1, "2026-01-01T00:00:00+00:00", 1), kaggle.kernels[REF][0]


def test_a_line_of_the_log_holds_every_value_of_a_step() -> None:
    for one in (event(7), event(8, float("inf"))):
        assert Event(**read_step(write_step(asdict(one))) or {}) == one  # type: ignore[arg-type]
    skipped = read_step(write_step(asdict(event(9)) | {"grad_norm": None}))
    assert skipped is not None
    assert skipped["grad_norm"] is None
    assert read_step("train 7/14  loss 2.5") is None


def test_a_log_that_is_cut_and_begins_anew_gives_each_step_once(
    kaggle: KaggleServer, account: Account, lines: Lines, running: tuple[PushRecord, Session]
) -> None:
    push, session = running
    for cut in (5, 20, 20, 0, 33):
        kaggle.fail("logs", cut_after=cut)
    record = Record()

    def write() -> None:
        for line in log_lines():
            # A chunk of the log need not end where a line does.
            session.say(line[:9])
            session.say(f"{line[9:]}\n")
            time.sleep(0.002)
        while any(fault.times for fault in kaggle.faults):
            time.sleep(0.01)
        session.end("COMPLETE")

    threading.Thread(target=write, daemon=True).start()
    assert wait(account, push, lines, LogReader(record), interval=0.01)[0] is FinalStatus.DONE
    assert record.events == [event(step) for step in range(1, STEPS + 1)]
    assert record.stages == ["before", "training", "after", "report"]
    assert record.rows == [(3, 3), (3, 3)]
    assert record.said == ["preset demo"]


def test_a_log_read_a_second_time_adds_no_step() -> None:
    record = Record()
    reader = LogReader(record)
    for line in log_lines() * 2:
        reader(line)
    assert len(record.events) == STEPS


def test_steps_reach_the_log_while_they_are_written(tmp_path: Path) -> None:
    path, lines = tmp_path / "events.jsonl", Lines()
    rows = [json.dumps(asdict(event(step))) + "\n" for step in (1, 2, 3)]
    with steps_shown(path, lines) as say:
        path.write_text(rows[0] + rows[1] + rows[2][:10], encoding="utf-8")
        say("a line of the run")
        with path.open("a", encoding="utf-8") as file:
            file.write(rows[2][10:])
        say("score after …")
    steps = [write_step(asdict(event(step))) for step in (1, 2, 3)]
    assert lines == [*steps[:2], "a line of the run", steps[2], "score after …"]


def test_steps_that_a_resumed_run_does_again_reach_the_log(tmp_path: Path) -> None:
    path, lines = tmp_path / "events.jsonl", Lines()
    first = [json.dumps(asdict(event(step))) + "\n" for step in (1, 2, 3)]
    again = [json.dumps(asdict(event(step)) | {"eta_s": 0.5}) + "\n" for step in (2, 3, 4)]
    with steps_shown(path, lines) as say:
        path.write_text("".join(first), encoding="utf-8")
        say("a line of the run")
        path.write_text(first[0] + again[0][:20], encoding="utf-8")
        say("resumed")
        path.write_text(first[0] + "".join(again), encoding="utf-8")
    shown = [line.split(" ")[2] for line in lines if line.startswith("medcot step")]
    assert [one.partition("/")[0] for one in shown] == ["1", "2", "3", "2", "3", "4"]


def test_a_terminal_draws_a_kernel_like_a_run_of_its_own() -> None:
    drawn = []
    for kind in (TerminalListener, WatchListener):
        console = Console(file=io.StringIO(), force_terminal=True, width=110)
        listener = kind(console)
        take = LogReader(listener)
        with listener.live():
            if kind is WatchListener:
                for line in log_lines():
                    take(line)
            else:
                for step in range(1, STEPS + 1):
                    listener.event(event(step))
            shown = io.StringIO()
            Console(file=shown, width=110).print(listener._draw())
        drawn.append([line for line in shown.getvalue().splitlines() if "┤" in line])
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 5
    assert "3.900" in drawn[0][0]
    with pytest.raises(KeyboardInterrupt):
        WatchListener(Console(file=io.StringIO())).ask_to_stop()


def test_a_curve_falls_where_its_values_fall() -> None:
    lines = draw_curve([4.0, 3.0, 2.0, 1.0], height=2)
    assert lines == ["4.000 ┤█▃", "1.000 ┤██▆▁"]
    assert draw_curve([1.0]) == []
    assert len(draw_curve([float(n) for n in range(500)], width=40)[0]) < 50
    assert " " in draw_curve([3.0, float("nan"), 1.0], height=1)[0].partition("┤")[2]


def test_the_notebooks_panel_follows_a_kernel_and_brings_its_output_home(
    kaggle: KaggleServer,
    run: RunDirectory,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kaggle_panel, "INTERVAL_S", 0.05)
    monkeypatch.setattr(kaggle_panel, "WATCHER", kaggle_panel.KernelWatcher())
    kaggle.start = idle_session
    built = kaggle_panel.BuiltKernel(build(CONFIG, run, USER, KernelOptions(), project), run)
    kaggle_panel.push_kernel(built)
    job = kaggle_panel.WATCHER.current_job()
    assert job is not None
    [session] = kaggle.sessions()
    for line in log_lines()[:20]:
        session.say(f"{line}\n")
    while len(job.events) < 10:
        time.sleep(0.01)
    assert kaggle_panel.WATCHER.is_watching()
    page = show_job(job, "en")
    assert 'data-job="running"' in page
    assert "<svg" in page or "data-chart" in page
    end_session(session, {"run/report.json": b'{"verdict": {}}\n'})
    assert job.wait(20).state == "done"
    assert run.has("report.json")
    assert kaggle_panel.last_ended(None, kaggle_panel.WATCHER.ended_job()) is job
