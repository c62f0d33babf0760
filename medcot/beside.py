"""What the processes beside the main one do in a run: their part of the training."""

from __future__ import annotations

import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from medcot import model as models
from medcot import processes
from medcot.config import RunConfig
from medcot.errors import InputError
from medcot.plan import Plan
from medcot.preparation import Listener, Prepared, prepare
from medcot.rundir import RunDirectory
from medcot.token_rows import lengths_of


@dataclass(frozen=True, slots=True)
class Task:
    """What the main process decided for all. ``train`` is False where that is done already."""

    config: RunConfig
    plan: Plan
    rows: tuple[str, int, int]
    train: bool


def hand_out(prepared: Prepared) -> None:
    """Tell the other processes what this run computes; they wait for it in :func:`take_part`."""
    trained = prepared.directory.has("training.json")
    processes.tell(Task(prepared.config, prepared.plan, _rows_of(prepared), not trained))


def take_part(listener: Listener) -> None:
    """Do what the main process hands out until it has nothing more.

    Nothing is written but in a scratch folder of this process, which goes away with it.

    Raises:
        InputError: this host's data are not those of the main process.
        Cancelled, RunFailed: as in the main process.
    """
    while (task := processes.hear(listener.should_stop)) is not None:
        with tempfile.TemporaryDirectory(prefix="medcot-") as scratch:
            _take_part_in(task, RunDirectory(Path(scratch) / "run"), listener)


def _take_part_in(task: Task, scratch: RunDirectory, listener: Listener) -> None:
    if not task.train:
        return
    from medcot.training import fit

    prepared = prepare(task.config, scratch, Listener())
    if _rows_of(prepared) != task.rows:
        host = socket.gethostname()
        got = f"other rows on {host} than in the main process"
        raise InputError(f"--dataset {task.config.dataset}", got, "the same data on every host")
    loaded = models.load_base(task.config, task.plan)
    models.add_adapter(loaded, task.config, task.plan)
    fit(
        loaded,
        prepared.rows,
        task.config,
        task.plan,
        scratch,
        on_event=Listener().event,
        should_stop=listener.should_stop,
    )
    models.release(loaded)


def _rows_of(prepared: Prepared) -> tuple[str, int, int]:
    """What must be the same everywhere: the data set, the rows chosen of it, their tokens."""
    rows = prepared.rows
    return prepared.dataset.fingerprint, len(rows), sum(lengths_of(rows))
