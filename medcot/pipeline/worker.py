"""What the processes beside the main one do in a run: their part of training and evaluation."""

from __future__ import annotations

import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from medcot.config.schema import RunConfig
from medcot.data.tokenized import list_row_lengths
from medcot.distributed import comm
from medcot.engines import loading as models
from medcot.errors import InputError
from medcot.hardware.machine import detect_machine
from medcot.inference.generate import model_tools
from medcot.listener import Listener
from medcot.pipeline.collective import Adapter, Step, Use, load_adapter_too, use_alike
from medcot.pipeline.prepare import Prepared, prepare
from medcot.pipeline.sharding import Share, take_share
from medcot.planning.plan import Plan
from medcot.runs.directory import RunDirectory


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
    comm.tell(Task(prepared.config, prepared.plan, _rows_of(prepared), not trained))


def take_part(listener: Listener) -> None:
    """Do what the main process hands out until it has nothing more.

    Nothing is written but in a scratch folder of this process, which goes away with it.

    Raises:
        InputError: this host's data are not those of the main process.
        Cancelled, RunFailed: as in the main process.
    """
    part: _Part | None = None
    with tempfile.TemporaryDirectory(prefix="medcot-") as scratch:
        while (said := comm.hear(listener.should_stop)) is not None:
            if isinstance(said, Task):
                part = None
                folder = tempfile.mkdtemp(dir=scratch)
                part = _Part(said, RunDirectory(Path(folder) / "run"), listener)
            else:
                assert part is not None
                part.do(said)


class _Part:
    """This process's model in one run."""

    def __init__(self, task: Task, scratch: RunDirectory, listener: Listener) -> None:
        self.task, self.scratch, self.listener = task, scratch, listener
        if task.train:
            self.prepared = prepare(task.config, scratch, Listener())
            self._compare_rows()
        else:
            models.prepare_engine(task.config, detect_machine())
        self.loaded = models.load_base(task.config, task.plan)

    def do(self, step: Step) -> None:
        """What the main process does at the same time."""
        config, plan = self.task.config, self.task.plan
        if isinstance(step, Use):
            use_alike(step, self.loaded, config)
        elif isinstance(step, Share):
            take_share(step, model_tools(self.loaded, config), self.listener.should_stop)
        elif isinstance(step, Adapter):
            load_adapter_too(step, self.loaded, config, plan)
        else:
            self._train()

    def _compare_rows(self) -> None:
        if _rows_of(self.prepared) != self.task.rows:
            host = socket.gethostname()
            got = f"the rows on {host} differ from those of the main process"
            needs = "use the same data on every host"
            raise InputError(f"--dataset {self.task.config.dataset}", got, needs)

    def _train(self) -> None:
        from medcot.training.fit import fit

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
    return prepared.dataset.fingerprint, len(rows), sum(list_row_lengths(rows))
