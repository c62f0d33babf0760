"""Defines the interface through which a run reports to a front end and is asked to stop."""

from __future__ import annotations

from medcot.catalog import Message
from medcot.records import Event


class Listener:
    """Receives a run's progress. This base class ignores it and never stops the run."""

    def say(self, line: str | Message) -> None:
        """Receive one line for the user."""

    def stage(self, name: str) -> None:
        """Receive the begin of a stage: before, training, after or report."""

    def progress(self, done: int, total: int) -> None:
        """Receive how many rows of the stage are scored."""

    def event(self, event: Event) -> None:
        """Receive one optimizer step."""

    def should_stop(self) -> bool:
        """Return whether to end after the current step or row; finished work is kept."""
        return False
