"""Tracks a run in W&B, TensorBoard or trackio. A failure costs one line, never the run."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol
from uuid import uuid4

from medcot.config.schema import RunConfig
from medcot.errors import one_line
from medcot.records import Event
from medcot.runs.directory import RunDirectory
from medcot.training.wandb_run import WandbRun, open_wandb, report_scores

Say = Callable[[str], None]
"""Shows one line to the user."""


class Sink(Protocol):
    """One place that a run is tracked in. Its methods may raise anything."""

    @property
    def name(self) -> str:
        """The name that messages use."""
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of one optimizer step."""
        ...

    def finish(self, report: Mapping[str, Any] | None, exit_code: int) -> None:
        """Send the results of a run that succeeded, and close."""
        ...


class Tracker:
    """Sends events and results to each sink, or nowhere.

    After a failure of a sink it says so in one line and sends nothing more there.
    """

    def __init__(self, sinks: Sequence[Sink] = (), say: Say = lambda _line: None) -> None:
        self._sinks, self._say = list(sinks), say

    def log(self, event: Event) -> None:
        """Send one optimizer step."""
        step, values = event.step, event_values(event)
        self._attempt(lambda sink: sink.log(values, step), "the run continues without it")

    def finish(self, report: Mapping[str, Any] | None, exit_code: int = 0) -> None:
        """Send the results and close. ``report`` is None for a run that was not scored."""
        self._attempt(lambda sink: sink.finish(report, exit_code), "the run directory has it all")

    def _attempt(self, action: Callable[[Sink], None], then: str) -> None:
        for sink in tuple(self._sinks):
            try:
                action(sink)
            except Exception as error:  # noqa: BLE001 - no tracking failure may cost a run
                self._sinks.remove(sink)
                self._say(f"{sink.name}: {one_line(str(error))}; {then}.")


def start_tracking(config: RunConfig, directory: RunDirectory, say: Say) -> Tracker:
    """Open what ``config.wandb`` and ``config.track`` ask for; a resumed run goes on in its own."""
    sinks: list[Sink] = []
    if (run := open_wandb(config, directory, say)) is not None:
        sinks.append(WandbRun(run, directory))
    if config.track != "none":
        kind = {"tensorboard": TensorBoard, "trackio": Trackio}[config.track]
        try:
            sinks.append(kind(config, directory))
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in _PACKAGES:
                raise
            say(f"{kind.name}: not installed (pip install 'medcot[{config.track}]').")
        except Exception as error:  # noqa: BLE001 - no tracking failure may cost a run
            say(f"{kind.name}: {one_line(str(error))}; the run continues without it.")
    return Tracker(sinks, say)


_PACKAGES = ("tensorboard", "trackio")


def event_values(event: Event) -> dict[str, float]:
    """Return an event's numbers under the names that every sink gives them."""
    values = asdict(event)
    del values["step"]
    validation = values.pop("validation_loss")
    named = {f"train/{name}": value for name, value in values.items()}
    named["validation/loss"] = validation
    return {name: value for name, value in named.items() if value is not None}


class TensorBoard:
    """Writes to ``tensorboard/`` in the run directory, by torch's ``SummaryWriter``."""

    name = "TensorBoard"

    def __init__(self, config: RunConfig, directory: RunDirectory) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._make = SummaryWriter
        self._writer: Any = None
        self._directory, self._step = directory, 0

    def _open(self, step: int) -> Any:
        # Steps that a killed process wrote after its last checkpoint are computed again.
        return self._make(str(self._directory.path / "tensorboard"), purge_step=step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write one scalar for each value."""
        self._writer = self._writer or self._open(step)
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, report: Mapping[str, Any] | None, exit_code: int) -> None:
        """Write the scores and the report's text, and close the file."""
        if report is not None:
            self._writer = self._writer or self._make(str(self._directory.path / "tensorboard"))
            for name, value in report_scores(report).items():
                self._writer.add_scalar(name, value, self._step)
            if self._directory.report_markdown.exists():
                text = self._directory.report_markdown.read_text(encoding="utf-8")
                self._writer.add_text("report", text, self._step)
        if self._writer is not None:
            self._writer.close()


class Trackio:
    """Writes to trackio's local database (``TRACKIO_DIR``), in the project ``wandb_project``."""

    name = "trackio"

    def __init__(self, config: RunConfig, directory: RunDirectory) -> None:
        import trackio  # pyright: ignore[reportMissingImports] - optional, not installed for tests

        # Another directory's run of the same name is another run.
        known = directory.has("trackio.json")
        mark = directory.read_json("trackio.json")["id"] if known else uuid4().hex[:8]
        with _quiet():
            self._run: Any = trackio.init(
                project=config.wandb_project,
                name=f"{directory.path.name}-{mark}",
                config=config.model_dump(mode="json"),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        directory.write_json("trackio.json", {"id": mark})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send one row of values."""
        self._run.log(dict(values), step=step)

    def finish(self, report: Mapping[str, Any] | None, exit_code: int) -> None:
        """Send the scores and wait until everything is written."""
        with _quiet():
            if report is not None:
                self._run.log(report_scores(report))
            self._run.finish()


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep a library's greetings out of standard output, which ``--json`` promises to be JSON."""
    before, sys.stdout = sys.stdout, io.StringIO()
    try:
        yield
    finally:
        sys.stdout = before
