"""Progress on a terminal and without one: what is done, of how much, and how long it takes."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from medcot.cli import progress
from medcot.cli.progress import TerminalListener
from medcot.records import Event, StudyState, TrainingState

PLAN = {"before": 40.0, "training": 60.0, "after": 40.0}


def listener(*, terminal: bool) -> tuple[TerminalListener, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=110, soft_wrap=not terminal)
    return TerminalListener(console), file


def tell(one: TerminalListener) -> None:
    one.planned(PLAN)
    one.stage("before")
    one.progress(0, 51)
    one.answering(3, 16, 1204, 2560)
    one.progress(51, 51)
    one.stage("training")
    one.event(Event(7, 14, 2.5, 1e-3, 1.0, 860, 110.0, 1.7, 55.0))


def test_without_a_terminal_lines_tell_the_work_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", -1.0)
    one, file = listener(terminal=False)
    with one.live():
        tell(one)
    lines = file.getvalue().splitlines()
    assert lines[0] == "score before …"
    assert lines[1].startswith("score before 0/51  rows  (whole run 0 %, about 2:20 left)")
    assert "score before 0/51  3 of 16 answered, 1,204 tokens  (whole run" in lines[2]
    assert lines[-1].startswith("train 7/14  loss ")
    assert lines[-1].endswith("left)")


def test_on_a_terminal_a_bar_of_the_whole_run_stands_above_its_stages() -> None:
    one, file = listener(terminal=True)
    with one.live():
        tell(one)
        shown = one._bars.tasks if one._bars else []
        assert [task.description for task in shown] == ["whole run", "score before", "train"]
        assert [task.fields["count"] for task in shown[1:]] == ["51/51", "7/14"]
        assert "left" in shown[0].fields["facts"]
        assert 0 < shown[0].completed < 1
    assert "whole run" not in file.getvalue().splitlines()[-1]  # nothing is left to wait for


def test_a_command_without_a_plan_shows_its_stage_alone() -> None:
    one, file = listener(terminal=False)
    with one.live():
        one.stage("before")
        one.progress(2, 2)
    assert file.getvalue().splitlines() == ["score before …", "score before 2/2  rows"]


def test_a_study_is_a_table_of_arms_and_seeds_above_the_bars() -> None:
    one, _ = listener(terminal=True)
    scored = TrainingState("scored", loss=2.5)
    arms = {f"rank-{rank}": [scored, scored] for rank in range(40)}
    arms["rank-40"] = [TrainingState("trained", loss=2.25), TrainingState("training", 3, 8)]
    arms["rank-41"] = [TrainingState("waiting")] * 2
    with one.live():
        one.study(StudyState(arms, 40, 240.0))
        with one.console.capture() as drawn:
            one.console.print(one._draw())
    lines = [line.split() for line in Text.from_ansi(drawn.get()).plain.splitlines()]
    assert " ".join(lines[0]) == "40 of 42 arms done, about 4 min left"
    assert lines[1] == ["arm", "seed", "1", "seed", "2"]
    assert lines[-2] == ["rank-40", "trained", "2.2500", "step", "3/8"]
    assert lines[-1] == ["rank-41", "waiting", "waiting"]
    assert len(lines) < one.console.height
