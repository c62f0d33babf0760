"""Tells how far a study is: its arms' trainings as they are on disk, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from medcot.catalog import Message
from medcot.listener import Listener
from medcot.records import Event, StudyState, TrainingState
from medcot.runs.directory import RunDirectory

REFRESH_S = 1.0
"""Seconds between two looks at the run directories while steps follow one another."""

Look = Callable[[str], Sequence[TrainingState]]
"""Returns the state of the trainings of an arm, given by its name."""


class StudyProgress(Listener):
    """Passes on what the arms of a study tell, and tells how far the whole study is.

    An arm is expected to take as long as those that this process did, the first as long as its plan
    says. Arms of other processes are shown too; the time left is as if this one did the rest.
    """

    def __init__(
        self,
        listener: Listener,
        arms: Sequence[str],
        look: Look,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener, self._arms, self._look, self._now = listener, arms, look, now
        self._done: dict[str, Sequence[TrainingState]] = {}
        self._durations: list[float] = []
        self._planned: float | None = None
        self._began: float | None = None
        self._looked = 0.0

    def begin_arm(self, name: str) -> None:
        """Tell that an arm begins."""
        self._began = self._now()
        self._listener.say(Message("study_arm_begins", {"arm": name}))
        self._tell()

    def end_arm(self) -> None:
        """Tell that the arm that began last is done."""
        if self._began is not None:
            self._durations.append(self._now() - self._began)
        self._began = None
        self._tell()

    def say(self, line: str | Message) -> None:
        """Pass the line on."""
        self._listener.say(line)

    def planned(self, seconds: Mapping[str, float]) -> None:
        """Take the plan of an arm, and pass it on."""
        if self._planned is None:
            self._planned = sum(seconds.values())
        self._listener.planned(seconds)

    def stage(self, name: str) -> None:
        """Pass the stage on."""
        self._listener.stage(name)
        self._tell()

    def progress(self, done: int, total: int) -> None:
        """Pass the rows on."""
        self._listener.progress(done, total)
        self.refresh()

    def answering(self, done: int, total: int, tokens: int, most: int) -> None:
        """Pass the answers on."""
        self._listener.answering(done, total, tokens, most)
        self.refresh()

    def event(self, event: Event) -> None:
        """Pass the step on."""
        self._listener.event(event)
        self.refresh()

    def should_stop(self) -> bool:
        """Ask the study's listener."""
        return self._listener.should_stop()

    def refresh(self) -> None:
        """Tell how far the study is, unless that was told within the last second."""
        if self._now() - self._looked >= REFRESH_S:
            self._tell()

    def _tell(self) -> None:
        self._looked = self._now()
        states = {name: self._done.get(name) or self._look(name) for name in self._arms}
        self._done = {
            name: found
            for name, found in states.items()
            if all(one.state == "scored" for one in found)
        }
        left = self._seconds_left(len(states) - len(self._done))
        self._listener.study(StudyState(states, len(self._done), left))

    def _seconds_left(self, open_arms: int) -> float | None:
        done = self._durations
        expected = sum(done) / len(done) if done else self._planned
        if expected is None:
            return None
        spent = 0.0 if self._began is None else self._now() - self._began
        return max(0.0, open_arms * expected - min(spent, expected))


def read_state(training: RunDirectory, loss: float | None) -> TrainingState:
    """Return how far the training in a directory is; ``loss`` is shown once it is known."""
    if training.exists() and training.stage() == "done":
        return TrainingState("scored", loss=loss)
    if training.has("training.json"):
        return TrainingState("trained", loss=loss)
    if steps := list(training.rows(training.events)):
        return TrainingState("training", steps[-1]["step"], steps[-1]["steps"])
    return TrainingState("waiting")
