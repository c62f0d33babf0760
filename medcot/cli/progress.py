"""Shows a run: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from medcot.catalog import Message
from medcot.listener import STAGE_TITLES, Listener
from medcot.records import Event, StudyState
from medcot.run_clock import RunClock
from medcot.terminal import show_line, tolerate_encodings

SAME_SIGNAL_SECONDS = 1.0
"""Seconds within which signals count as one: launchers send SIGINT and SIGTERM together."""
PLAIN_SECONDS = 10.0
"""Without a terminal, seconds between progress lines."""


class TerminalListener(Listener):
    """Shows stages, progress and every step; the first Ctrl-C asks the run to stop.

    ``always_finishes`` is for a worker process: it always ends together with the others.
    """

    def __init__(self, console: Console, *, always_finishes: bool = False) -> None:
        self.console = console
        self._always_finishes = always_finishes
        self._clock = RunClock()
        self._steps_seen = False
        self._rows = (0, 0)
        self._losses: list[float] = []
        self._study: StudyState | None = None
        self._bars: Progress | None = None
        self._whole: TaskID | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._last_plain = 0.0
        self._stop = False

    def say(self, line: str | Message) -> None:
        """Print ``line`` above the progress bar."""
        self.console.print(escape(show_line(line)), highlight=False)

    def planned(self, seconds: Mapping[str, float]) -> None:
        """Show a bar of the whole run, and how long it will take."""
        # Each arm of a study has a plan of its own.
        self._clock, self._losses = RunClock(), []
        self._clock.plan(seconds)
        if self._bars is not None and self._whole is None:
            self._whole = self._bars.add_task("whole run", total=1.0, count="", facts="")

    def stage(self, name: str) -> None:
        """Finish the bar of the stage before, and start one for ``name``."""
        self._clock.begin(name)
        self._stage = STAGE_TITLES.get(name, name)
        self._steps_seen = False
        self._rows = (0, 0)
        self._last_plain = 0.0
        if self._bars is not None:
            self._finish_task()
            self._task = self._bars.add_task(self._stage, total=None, count="", facts="")
            self._show_whole()
        else:
            self.say(f"{self._stage} …")

    def progress(self, done: int, total: int) -> None:
        """Show how many rows are scored."""
        self._rows = (done, total)
        self._clock.advance(done / total if total else 0.0)
        self._show(done, total, "rows")

    def answering(self, done: int, total: int, tokens: int, most: int) -> None:
        """Show how many answers of a group are complete, and how many tokens are generated."""
        scored, rows = self._rows
        if rows:
            self._clock.advance((scored + total * max(done / total, tokens / most)) / rows)
        values = {"done": done, "total": total, "tokens": tokens}
        self._show(scored, rows, str(Message("doing_answers", values)))

    def event(self, event: Event) -> None:
        """Show loss, throughput and memory of an optimizer step."""
        facts = (
            f"loss {event.loss:.3f}  {event.tokens_per_second:,.0f} tokens/s"
            f"  {event.memory_gib:.1f} GiB"
        )
        if event.validation_loss is not None:
            values = {"step": event.step, "loss": event.validation_loss}
            self.say(Message("validated", values))
        self._steps_seen = True
        self._losses.append(event.loss)
        self._clock.advance(event.step / event.steps)
        self._show(event.step, event.steps, facts)

    def study(self, state: StudyState) -> None:
        """Show a table of the arms above the bars."""
        self._study = state

    def should_stop(self) -> bool:
        """Return whether the user asked to stop."""
        return self._stop

    def ask_to_stop(self) -> None:
        """Make the run end after the current step, and say so.

        Raises:
            KeyboardInterrupt: Nothing is in progress that would be lost: data and model are
                loaded, or a report is written.
        """
        self._stop = True
        if not self._is_polled():
            raise KeyboardInterrupt
        self.say(
            "Stopping after this step; finished work is kept. Press Ctrl-C again to stop at once."
        )

    def _is_polled(self) -> bool:
        """Return whether the run asks :meth:`should_stop` often, or has steps to save."""
        scoring = [STAGE_TITLES[name] for name in ("before", "after", "seeds")]
        if self._always_finishes or self._stage in scoring:
            return True
        return self._stage == STAGE_TITLES["training"] and self._steps_seen

    def _show(self, done: int, total: int, facts: str) -> None:
        if self._bars is not None and self._task is not None:
            count = f"{done}/{total}"
            self._bars.update(self._task, completed=done, total=total, count=count, facts=facts)
            self._show_whole()
        elif done == total or time.monotonic() - self._last_plain > PLAIN_SECONDS:
            self._last_plain = time.monotonic()
            whole = self._describe_whole()
            self.say(f"{self._stage} {done}/{total}  {facts}{f'  ({whole})' if whole else ''}")

    def _show_whole(self) -> None:
        fraction, left = self._clock.fraction(), self._clock.seconds_left()
        if self._bars is None or self._whole is None or fraction is None or left is None:
            return
        share, facts = f"{100 * fraction:.0f} %", f"about {_duration(left)} left"
        self._bars.update(self._whole, completed=fraction, count=share, facts=facts)

    def _describe_whole(self) -> str:
        fraction, left = self._clock.fraction(), self._clock.seconds_left()
        if fraction is None or left is None:
            return ""
        return f"whole run {100 * fraction:.0f} %, about {_duration(left)} left"

    def _draw(self) -> Group:
        """Return the bars, a study's table above, and the curve of the loss below them."""
        from medcot.cli.curve import draw_curve  # No kernel on Kaggle carries what terminals show.

        curve = draw_curve(self._losses, width=min(60, self.console.width - 12))
        shown: list[RenderableType] = [*([self._bars] if self._bars else []), *map(Text, curve)]
        if self._study:
            from medcot.cli.study_table import draw_study

            shown.insert(0, draw_study(self._study, max(1, self.console.height - len(curve) - 8)))
        return Group(*shown)

    def _finish_task(self) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.stop_task(self._task)
            self._task = None

    @contextmanager
    def live(self) -> Generator[TerminalListener]:
        """Show progress while the block runs; the first Ctrl-C or SIGTERM asks the run to stop."""
        with _asked_to_stop_by_signals(self):
            if not self.console.is_terminal:
                yield self
                return
            self._bars = Progress(
                TextColumn("{task.description:<13}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[count]:>7}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[facts]}"),
                console=self.console,
            )
            with Live(get_renderable=self._draw, console=self.console, refresh_per_second=4):
                try:
                    yield self
                finally:
                    self._finish_task()
                    if self._whole is not None:
                        self._bars.remove_task(self._whole)
            self._bars = self._whole = None


class WatchListener(TerminalListener):
    """Shows a run that goes on elsewhere: Ctrl-C ends the watching at once, and nothing else."""

    def ask_to_stop(self) -> None:
        """End the watching.

        Raises:
            KeyboardInterrupt: always.
        """
        raise KeyboardInterrupt


@contextmanager
def _asked_to_stop_by_signals(listener: TerminalListener) -> Generator[None]:
    first = 0.0

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal first
        if not listener.should_stop():
            first = time.monotonic()
            listener.ask_to_stop()
        elif time.monotonic() - first > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt

    previous: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    except ValueError:
        pass  # Only the main thread may handle signals; elsewhere nothing was changed.
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def make_console(*, quiet: bool = False) -> Console:
    """Return the console for progress; without a terminal, long lines are not wrapped."""
    tolerate_encodings()
    return Console(soft_wrap=not sys.stdout.isatty(), highlight=False, quiet=quiet)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
