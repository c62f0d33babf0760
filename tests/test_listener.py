"""The clock of a run: it begins with the plan, and is corrected by what is seen."""

import pytest

from medcot.listener import RunClock

PLAN = {"before": 40.0, "training": 60.0, "after": 40.0}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Clock()


@pytest.fixture
def clock(time):
    made = RunClock(time)
    made.plan(PLAN)
    made.begin("before")
    return made


def test_nothing_is_said_without_a_plan(time):
    clock = RunClock(time)
    clock.begin("before")
    clock.advance(0.5)
    assert clock.seconds_left() is None
    assert clock.fraction() is None


def test_at_first_the_plan_is_believed(clock):
    assert clock.seconds_left() == 140
    assert clock.fraction() == 0


def test_a_machine_half_as_fast_doubles_what_is_left(clock, time):
    time.now += 40
    clock.advance(0.5)
    assert clock.seconds_left() == pytest.approx(40 + 120 + 80)
    assert clock.fraction() == pytest.approx(40 / 280)


def test_scoring_after_takes_what_scoring_before_took(clock, time):
    time.now += 20
    clock.advance(1.0)
    clock.begin("training")
    assert clock.seconds_left() == pytest.approx(60 + 20)
    time.now += 60
    clock.advance(1.0)
    clock.begin("after")
    assert clock.seconds_left() == pytest.approx(20)
    clock.begin("report")
    assert clock.seconds_left() == 0
    assert clock.fraction() == 1


def test_a_resumed_stage_is_judged_by_what_this_session_does(clock, time):
    clock.advance(0.5)
    assert clock.seconds_left() == pytest.approx(20 + 60 + 40)
    time.now += 10
    clock.advance(0.75)
    assert clock.seconds_left() == pytest.approx(10 + 60 + 40)


def test_the_share_never_falls(clock, time):
    time.now += 10
    clock.advance(0.5)
    clock.advance(0.3)
    assert clock.seconds_left() == pytest.approx(10 + 30 + 20)


def test_a_stage_that_is_left_out_is_not_waited_for(time):
    clock = RunClock(time)
    clock.plan({"before": 40.0, "after": 40.0})
    clock.begin("before")
    time.now += 40
    clock.advance(1.0)
    clock.begin("after")
    assert clock.seconds_left() == 40
