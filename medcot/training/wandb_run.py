"""Opens a W&B run, and sends it a run's results: scores, the table of rows, report and adapter.

Nothing here may hold up a run for long: every wait for the server is bounded.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import uuid4

from medcot.config.schema import RunConfig
from medcot.credentials import has_wandb_login, redact_values
from medcot.errors import one_line
from medcot.evaluation.interface import rows_from_json
from medcot.network import OFFLINE, is_offline
from medcot.runs.directory import RunDirectory

INIT_S, FINISH_S = 60.0, 300.0
"""Seconds that opening a run and sending its last data may take; afterwards it is on disk.

The client waits a second time for what is unsent when the process ends, so that a server that hangs
delays a run by ``INIT_S`` if it hangs from the start, and else by at most twice ``FINISH_S``.
"""

REPORT_FILES = ("report.json", "report.md", "report.html")
COLUMNS = (
    "kind", "set", "id", "prompt", "output before", "output after",
    "nll before", "nll after", "correct before", "correct after",
)  # fmt: skip


class WandbRun:
    """The W&B run of a run directory. See :class:`medcot.training.tracking.Sink`."""

    name = "W&B"

    def __init__(self, run: Any, directory: RunDirectory) -> None:
        self._run, self._directory = run, directory

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand the values to the client's own process, which sends them."""
        if step == getattr(self._run, "step", 0) - 1:
            # A resumed run makes up for a validation, and the client takes nothing more for a step
            # that is sent: it stands one later.
            late = {name: one for name, one in values.items() if name.startswith("validation/")}
            self._run.log(late, commit=False)
            return
        # Else the client keeps a step back until the next one, and loses the last one to a server
        # that hangs.
        self._run.log(dict(values), step=step, commit=True)

    def finish(self, report: Mapping[str, Any] | None, exit_code: int) -> None:
        """Send the results and close the run.

        Raises:
            TimeoutError: The server did not take everything within ``FINISH_S``.
        """
        try:
            within(FINISH_S, lambda: self._close(report, exit_code))
        except TimeoutError:
            where = self._run.settings.sync_dir
            raise TimeoutError(
                f"the server did not take everything within {FINISH_S:.0f} s; "
                f"to send the rest: wandb sync {where}"
            ) from None

    def _close(self, report: Mapping[str, Any] | None, exit_code: int) -> None:
        problem: Exception | None = None
        if exit_code == 0:
            try:
                self._send_results(report)
            except Exception as error:  # noqa: BLE001 - the run is closed first, then it is said
                problem = error
        self._run.finish(exit_code=exit_code)
        if problem is not None:
            raise problem

    def _send_results(self, report: Mapping[str, Any] | None) -> None:
        import wandb

        directory = self._directory
        if report is not None:
            self._run.summary.update({"verdict": report["verdict"], **report_scores(report)})
            rows: list[Any] = list(paired_rows(directory))
            if rows:
                self._run.log({"rows": wandb.Table(columns=list(COLUMNS), data=rows)})
            self._send_files("report", [directory.path / name for name in REPORT_FILES])
        self._send_files("adapter", sorted(directory.adapter.glob("*")))

    def _send_files(self, kind: str, paths: list[Any]) -> None:
        """Log the files that exist as one artifact, and wait until the server has them."""
        import wandb

        if not (found := [path for path in paths if path.is_file()]):
            return
        label = re.sub(r"[^\w.-]", "-", f"{kind}-{self._run.id}", flags=re.ASCII)
        artifact = wandb.Artifact(label, type="model" if kind == "adapter" else kind)
        for path in found:
            # The run directory keeps them as they are, so the client needs no copy.
            artifact.add_file(str(path), policy="immutable")
        logged = self._run.log_artifact(artifact)
        if not self._run.offline:
            logged.wait(timeout=int(FINISH_S) or 1)


def report_scores(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the report's mean test losses, in nats per token, as every sink names them."""
    return {f"{part}/nll": report[part]["nll"] for part in ("before", "after")}


def paired_rows(directory: RunDirectory) -> Iterator[list[Any]]:
    """Return one list of ``COLUMNS`` for each row that was scored before and after."""
    before, after = (
        rows_from_json(directory.rows(path), where=str(path)) if path.exists() else []
        for path in (directory.evaluation("before"), directory.evaluation("after"))
    )
    later = {row.row_key: row for row in after}
    for row in before:
        if (then := later.get(row.row_key)) is not None:
            texts = (row.prompt, row.output, then.output)
            hidden = [None if text is None else redact_values(text) for text in texts]
            numbers = [row.nll, then.nll, row.correct, then.correct]
            yield [row.kind, row.set, row.id, *hidden, *numbers]


def within(seconds: float, action: Callable[[], None]) -> None:
    """Call ``action``, and give up waiting for it after ``seconds``.

    Raises:
        TimeoutError: It is not done; it goes on in a thread that ends with the process.
        Exception: What ``action`` raised.
    """
    raised: list[BaseException] = []

    def call() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if thread.is_alive():
        raise TimeoutError(f"not done within {seconds:.0f} s")


def open_wandb(config: RunConfig, directory: RunDirectory, say: Callable[[str], None]) -> Any:
    """Return the W&B run that ``config.wandb`` asks for, on resume the same one, or None."""
    if config.wandb == "off":
        return None
    try:
        import wandb
    except ImportError:
        say("W&B: not installed, so nothing is tracked there (pip install 'medcot[track]').")
        return None
    mode = config.wandb
    if mode == "online" and not has_wandb_login():
        say(f"W&B: no login found, so the run is kept offline in {directory.path / 'wandb'}.")
        mode = "offline"
    if mode == "online" and is_offline():
        say(f"W&B: {OFFLINE} is on, so the run is kept offline in {directory.path / 'wandb'}.")
        mode = "offline"
    for tried in dict.fromkeys((mode, "offline")):
        try:
            return _open(wandb, tried, config, directory)
        except Exception as error:  # noqa: BLE001 - no tracking failure may cost a run
            kept = f"is kept offline in {directory.path / 'wandb'}"
            then = kept if tried == "online" else "continues without it"
            say(f"W&B: {one_line(str(error))}; the run {then}.")
    return None


def _open(wandb: Any, mode: str, config: RunConfig, directory: RunDirectory) -> Any:
    known = directory.has("wandb.json")
    run_id = directory.read_json("wandb.json")["id"] if known else uuid4().hex[:8]
    # Clients before these settings wait for ever at the end; they refuse settings they do not know.
    known_settings = wandb.Settings.model_fields
    limits = {"finish_timeout": FINISH_S, "finish_timeout_raises": True}
    limits = {name: value for name, value in limits.items() if name in known_settings}
    # The client keeps the command line, which may hold a judge's login.
    sys.argv[1:] = [redact_values(argument) for argument in sys.argv[1:]]
    run = wandb.init(
        project=config.wandb_project,
        job_type=config.wandb_job_type,
        name=directory.path.name,
        id=run_id,
        resume="allow",
        mode=mode,
        dir=str(directory.path),
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_S, **limits),
    )
    directory.write_json("wandb.json", {"id": run_id, "mode": mode, "url": run.url})
    return run
