"""`Listener`: what a front end hears of a run, and how it asks a run to stop."""

from __future__ import annotations

from medcot.catalog import Message
from medcot.records import Event


class Listener:
    """What a front end hears of a run. The default hears nothing and never stops it."""

    def say(self, line: str | Message) -> None:
        """One line for the user."""

    def stage(self, name: str) -> None:
        """A stage begins: before, training, after, report."""

    def progress(self, done: int, total: int) -> None:
        """Rows scored so far, of those of this stage."""

    def event(self, event: Event) -> None:
        """One optimizer step."""

    def should_stop(self) -> bool:
        """Whether to end after the step or row at hand, keeping everything."""
        return False
