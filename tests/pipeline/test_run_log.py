"""``medcot.log`` and the fallbacks of a run, without a model."""

import logging
import warnings

import pytest

from medcot.config.presets import make_config
from medcot.engines.fallbacks import report_fallback
from medcot.listener import Listener
from medcot.pipeline.run_log import keep_fallbacks, run_log
from medcot.runs.directory import RunDirectory

LOGGER = logging.getLogger("medcot.pipeline.run")


class Hearing(Listener):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def directory(tmp_path):
    return RunDirectory(tmp_path / "run")


def lines(directory):
    return directory.log.read_text(encoding="utf-8").splitlines()


def test_records_from_before_the_directory_exists_are_logged_once_it_does(directory):
    with run_log(directory, Listener(), resume=False):
        LOGGER.info("first, 先")
        assert not directory.log.exists()
        directory.create(make_config("demo"))
        LOGGER.info("second")
    assert [line.split(": ", 1)[1] for line in lines(directory)] == ["first, 先", "second"]


def test_handlers_and_levels_are_as_before_afterwards(directory):
    project, python = logging.getLogger("medcot"), logging.getLogger("py.warnings")
    before = (project.handlers[:], project.level, python.handlers[:], warnings.showwarning)
    with run_log(directory, Listener(), resume=False):
        directory.create(make_config("demo"))
    assert (project.handlers, project.level, python.handlers, warnings.showwarning) == before
    LOGGER.warning("outside of a run")
    assert not directory.log.exists()


def test_a_run_that_is_not_resumed_never_writes_into_anothers_log(directory):
    directory.create(make_config("demo"))
    with run_log(directory, Listener(), resume=False):
        LOGGER.warning("not for this directory")
    assert not directory.log.exists()
    with run_log(directory, Listener(), resume=True):
        LOGGER.info("resumed")
    assert len(lines(directory)) == 1


def test_the_user_is_told_of_warnings_and_not_of_details(directory):
    hearing = Hearing()
    with run_log(directory, hearing, resume=False):
        LOGGER.info("a detail")
        LOGGER.warning("a warning")
    assert hearing.lines == ["a warning"]


def test_warnings_of_other_libraries_are_logged_and_still_shown(directory):
    directory.create(make_config("demo"))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with run_log(directory, Listener(), resume=True):
            warnings.warn("mind the gap", UserWarning, stacklevel=1)
    assert [str(one.message) for one in shown] == ["mind the gap"]
    assert "UserWarning: mind the gap" in lines(directory)[0]


def test_fallbacks_join_those_of_earlier_sessions_in_the_environment(directory):
    directory.create(make_config("demo"))
    for session in (("b", "a"), ("a", "c")):
        with run_log(directory, Listener(), resume=True):
            if not directory.has("environment.json"):
                report_fallback("early", "Before the environment is known.")
                directory.write_json(
                    "environment.json", {"python": "3", "dataset": {"fingerprint": "f"}}
                )
                keep_fallbacks(directory)
            for code in session:
                report_fallback(code, f"{code} is slow.")
    environment = directory.read_json("environment.json")
    assert environment["python"] == "3"
    assert [one["code"] for one in environment["fallbacks"]] == ["a", "b", "c", "early"]
    assert environment["fallbacks"][0]["message"] == "a is slow."
