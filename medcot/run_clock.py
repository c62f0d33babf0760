"""Estimates how much of a run is done and how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class RunClock:
    """Estimates how much of a run is done and how long the rest takes.

    It begins with the plan's predictions. What a stage takes corrects those of the others, and
    scoring after takes as long as scoring before did.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._predicted: dict[str, float] = {}
        self._taken: dict[str, float] = {}
        self._stage = ""
        self._began = now()
        self._first_share = 0.0
        self._share = 0.0

    def plan(self, seconds: Mapping[str, float]) -> None:
        """Take the predicted seconds of every stage, in their order."""
        self._predicted = dict(seconds)

    def begin(self, stage: str) -> None:
        """End the stage that runs, and begin ``stage``."""
        if self._stage in self._predicted:
            self._taken[self._stage] = self._seconds_of_stage(elapsed=self._now() - self._began)
        self._stage, self._began = stage, self._now()
        self._first_share = self._share = 0.0

    def advance(self, share: float) -> None:
        """Take the share of the stage that is done.

        What is done at its very beginning was done by an earlier session of the run.
        """
        if self._now() - self._began < 1 and share > self._share:
            self._first_share = share
        self._share = max(self._share, min(share, 1.0))

    def fraction(self) -> float | None:
        """Return the part of the run that is done, by time; None without a plan."""
        left = self.seconds_left()
        if left is None:
            return None
        done = sum(self._taken.values()) + self._now() - self._began
        return done / (done + left) if done + left > 0 else 1.0

    def seconds_left(self) -> float | None:
        """Estimate the seconds until the run ends; None without a plan."""
        if self._stage not in self._predicted:
            return 0.0 if self._taken and self._stage else None
        names = list(self._predicted)
        whole = self._seconds_of_stage(elapsed=self._now() - self._began)
        left = whole * (1 - self._share)
        for name in names[names.index(self._stage) + 1 :]:
            left += self._seconds_to_come(name, whole)
        return left

    def _seconds_of_stage(self, elapsed: float) -> float:
        """Return how long the whole of the stage takes: as expected, and more and more as seen.

        Steps are alike, so a tenth of them tells the time of all; the rows of a scoring are not:
        those that are answered come first and take longest.
        """
        seen = self._share - self._first_share
        expected = self._expect(self._stage)
        if seen <= 0:
            return expected
        weight = min(1.0, seen / 0.1) if self._stage == "training" else seen
        return weight * elapsed / seen + (1 - weight) * expected

    def _seconds_to_come(self, name: str, current: float) -> float:
        if name == "after" and self._stage == "before":
            return current
        slower = current / self._expect(self._stage) if self._expect(self._stage) else 1.0
        return self._expect(name) if name == "after" else self._expect(name) * slower

    def _expect(self, name: str) -> float:
        """Return how long a stage takes, by the plan and the stages that are done."""
        if name == "after" and "before" in self._taken:
            return self._taken["before"]
        planned = sum(self._predicted[one] for one in self._taken)
        speed = sum(self._taken.values()) / planned if planned else 1.0
        return self._predicted[name] * speed
