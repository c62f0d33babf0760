"""Defines how a run reports to a front end and is asked to stop."""

from __future__ import annotations

from collections.abc import Mapping

from medcot.catalog import Message
from medcot.records import Event, StudyState

STAGE_TITLES = {
    "before": "score before",
    "training": "train",
    "after": "score after",
    "seeds": "score seeds",
    "report": "report",
}
"""What a terminal and a log call the stages."""


class Listener:
    """Receives a run's progress. This base class ignores it and never stops the run."""

    def say(self, line: str | Message) -> None:
        """Receive one line for the user."""

    def planned(self, seconds: Mapping[str, float]) -> None:
        """Receive how long each stage will take, as the plan predicts it."""

    def stage(self, name: str) -> None:
        """Receive the begin of a stage: before, training, after or report."""

    def progress(self, done: int, total: int) -> None:
        """Receive how many rows of the stage are scored."""

    def answering(self, done: int, total: int, tokens: int, most: int) -> None:
        """Receive how far a group of answers is, between two tokens.

        ``done`` of ``total`` answers are complete, and ``tokens`` of at most ``most`` generated.
        """

    def event(self, event: Event) -> None:
        """Receive one optimizer step."""

    def study(self, state: StudyState) -> None:
        """Receive how far a study is, when that changed."""

    def should_stop(self) -> bool:
        """Return whether to end after the current step or row; finished work is kept."""
        return False
