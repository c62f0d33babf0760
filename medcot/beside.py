"""What the processes beside the main one do in a run: their part of the training.

Where the model is split they take part in its evaluation, too.
"""

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
from medcot.together import Step, Use, load_adapter, use_alike
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
    part: _Part | None = None
    with tempfile.TemporaryDirectory(prefix="medcot-") as scratch:
        while (said := processes.hear(listener.should_stop)) is not None:
            if not isinstance(said, Task):
                assert part is not None
                part.do(said)
                continue
            part = None
            if said.plan.split or said.train:
                folder = tempfile.mkdtemp(dir=scratch)
                part = _Part(said, RunDirectory(Path(folder) / "run"), listener)
            if part and not said.plan.split:
                part.do("train")
                models.release(part.loaded)


class _Part:
    """This process's model in one run."""

    def __init__(self, task: Task, scratch: RunDirectory, listener: Listener) -> None:
        self.task, self.scratch, self.listener = task, scratch, listener
        self.prepared = prepare(task.config, scratch, Listener())
        if _rows_of(self.prepared) != task.rows:
            host = socket.gethostname()
            got = f"other rows on {host} than in the main process"
            raise InputError(f"--dataset {task.config.dataset}", got, "the same data on every host")
        self.loaded = models.load_base(task.config, task.plan)

    def do(self, step: Step) -> None:
        """What the main process does at the same time."""
        if isinstance(step, Use):
            use_alike(step, self.loaded, self.task.config)
        elif step == "train":
            self._train()
        else:
            load_adapter(self.loaded, self.task.config, self.task.plan, None)

    def _train(self) -> None:
        from medcot.training import fit

        models.add_adapter(self.loaded, self.task.config, self.task.plan)
        fit(
            self.loaded,
            self.prepared.rows,
            self.task.config,
            self.task.plan,
            self.scratch,
            on_event=Listener().event,
            should_stop=self.listener.should_stop,
        )


def _rows_of(prepared: Prepared) -> tuple[str, int, int]:
    """What must be the same everywhere: the data set, the rows chosen of it, their tokens."""
    rows = prepared.rows
    return prepared.dataset.fingerprint, len(rows), sum(lengths_of(rows))
