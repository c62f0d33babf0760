"""Runs a worker process: its part of the training and the evaluation of a run."""

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
from medcot.inference.loglikelihood import score_rows
from medcot.listener import Listener
from medcot.pipeline.collective import (
    AdapterLoad,
    ModelCall,
    Step,
    load_adapter_in_worker,
    repeat_call,
)
from medcot.pipeline.prepare import Prepared, prepare
from medcot.pipeline.sharding import ShardedEvaluation, submit_shard
from medcot.planning.plan import Plan
from medcot.runs.directory import RunDirectory


@dataclass(frozen=True, slots=True)
class RowsIdentity:
    """What must be equal in every process: the data set, the rows chosen of it, their tokens."""

    fingerprint: str
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """What the main process decided for all. ``train`` is False for a run that is trained."""

    config: RunConfig
    plan: Plan
    rows: RowsIdentity
    train: bool


def broadcast_task(prepared: Prepared) -> None:
    """Send the run's decisions to the workers, which wait for them in :func:`run_worker`."""
    trained = prepared.directory.has("training.json")
    comm.broadcast(
        WorkerTask(prepared.config, prepared.plan, _identify_rows(prepared), not trained)
    )


def run_worker(listener: Listener) -> None:
    """Carry out what the main process broadcasts, until it broadcasts None.

    Files are written only to a scratch folder, which is removed at the end.

    Raises:
        InputError: This host's data differ from those of the main process.
        Cancelled, RunFailed: As in the main process.
    """
    worker: _Worker | None = None
    with tempfile.TemporaryDirectory(prefix="medcot-") as scratch:
        while (message := comm.receive(listener.should_stop)) is not None:
            if isinstance(message, WorkerTask):
                worker = None  # Its model is freed before the next one is loaded.
                folder = tempfile.mkdtemp(dir=scratch)
                worker = _Worker(message, RunDirectory(Path(folder) / "run"), listener)
            else:
                assert worker is not None
                worker.carry_out(message)


class _Worker:
    """A worker's model in one run."""

    def __init__(self, task: WorkerTask, scratch: RunDirectory, listener: Listener) -> None:
        self.task, self.scratch, self.listener = task, scratch, listener
        if task.train:
            self.prepared = prepare(task.config, scratch, Listener())
            self._compare_rows()
        else:
            models.prepare_engine(task.config, detect_machine())
        self.loaded = models.load_base(task.config, task.plan)

    def carry_out(self, step: Step) -> None:
        """Do what the main process does at the same time."""
        config, plan = self.task.config, self.task.plan
        if isinstance(step, ModelCall):
            repeat_call(step, self.loaded, config, self.listener.should_stop)
        elif isinstance(step, ShardedEvaluation):
            stop = self.listener.should_stop
            submit_shard(step, model_tools(self.loaded, config, stop), stop)
        elif isinstance(step, AdapterLoad):
            load_adapter_in_worker(step, self.loaded, config, plan)
        else:
            self._train()

    def _compare_rows(self) -> None:
        if _identify_rows(self.prepared) != self.task.rows:
            host = socket.gethostname()
            got = f"the rows on {host} differ from those of the main process"
            needs = "use the same data on every host"
            raise InputError(f"--dataset {self.task.config.dataset}", got, needs)

    def _train(self) -> None:
        from medcot.training.fit import ValidationRows, fit

        models.add_adapter(self.loaded, self.task.config, self.task.plan)
        fit(
            self.loaded,
            self.prepared.rows,
            self.task.config,
            self.task.plan,
            self.scratch,
            on_event=Listener().event,
            should_stop=self.listener.should_stop,
            validation=ValidationRows(self.prepared.validation, score_rows),
        )


def _identify_rows(prepared: Prepared) -> RowsIdentity:
    rows = prepared.rows
    return RowsIdentity(prepared.dataset.fingerprint, len(rows), sum(list_row_lengths(rows)))
