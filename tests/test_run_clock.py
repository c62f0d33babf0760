"""The clock of a run: it begins with the plan, and is corrected by what is seen."""

import pytest

from medcot.run_clock import RunClock

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


def test_a_slower_machine_takes_longer_at_every_stage(clock, time):
    time.now += 40
    clock.advance(0.5)  # seen: 80 s, expected: 40 s, each believed by half
    assert clock.seconds_left() == pytest.approx(30 + 90 + 60)
    assert clock.fraction() == pytest.approx(40 / 220)


def test_a_tenth_of_the_steps_tells_the_time_of_all(clock, time):
    time.now += 40
    clock.advance(1.0)
    clock.begin("training")
    time.now += 12
    clock.advance(0.1)
    assert clock.seconds_left() == pytest.approx(108 + 40)


def test_the_first_answers_do_not_stand_for_all_rows(clock, time):
    """They take most of the time: 15 % of the rows may be half of it."""
    time.now += 40
    clock.advance(1.0)
    clock.begin("training")
    time.now += 60
    clock.advance(1.0)
    clock.begin("after")
    time.now += 20
    clock.advance(0.15)
    assert 20 < clock.seconds_left() < 50


def test_scoring_after_takes_what_scoring_before_took(clock, time):
    time.now += 20
    clock.advance(1.0)
    clock.begin("training")
    assert clock.seconds_left() == pytest.approx(30 + 20)
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
    assert clock.seconds_left() == pytest.approx(15 + 45 + 30)


def test_a_stage_that_is_left_out_is_not_waited_for(time):
    clock = RunClock(time)
    clock.plan({"before": 40.0, "after": 40.0})
    clock.begin("before")
    time.now += 40
    clock.advance(1.0)
    clock.begin("after")
    assert clock.seconds_left() == 40
