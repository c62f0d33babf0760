"""Reads a run's progress from the log of its kernel, so that a front end shows it as its own."""

from __future__ import annotations

import re
from typing import Any

from medcot.kaggle.session.step_lines import read_step
from medcot.listener import STAGE_TITLES, Listener
from medcot.records import Event

_STAGES = {title: stage for stage, title in STAGE_TITLES.items()}
_TITLES = "|".join(map(re.escape, _STAGES))
_BEGIN = re.compile(rf"({_TITLES}) …")
_DONE = re.compile(rf"({_TITLES}) (\d+)/(\d+)  .*")


class LogReader:
    """Passes what a log's lines tell to a listener; call it with one line after the other.

    A later session's log begins with the steps of the earlier ones: each step is passed once.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._stage, self._last_step = "", 0

    def __call__(self, line: str) -> None:
        """Take one line of the log."""
        if (values := read_step(line)) is not None:
            self._take_step(values)
        elif begun := _BEGIN.fullmatch(line):
            self._begin(_STAGES[begun[1]])
        elif done := _DONE.fullmatch(line):
            stage = _STAGES[done[1]]
            if stage != "training" and stage == self._stage:
                self._listener.progress(int(done[2]), int(done[3]))
        else:
            self._listener.say(line)

    def _begin(self, stage: str) -> None:
        if stage != self._stage:
            self._stage = stage
            self._listener.stage(stage)

    def _take_step(self, values: dict[str, Any]) -> None:
        if values["step"] <= self._last_step:
            return
        try:
            event = Event(**values)
        except TypeError:
            return  # another version of medcot wrote it
        self._last_step = event.step
        self._listener.event(event)
