"""Scores a run with lm-evaluation-harness: its own tasks by name, and question files as tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medcot.config.schema import RunConfig
from medcot.data.mcq import load_questions
from medcot.data.mcq_catalog import label_sets
from medcot.data.sources import is_data_file
from medcot.engines.base import LoadedModel
from medcot.evaluation import lm_eval as bridge
from medcot.evaluation.interface import BY_LM_EVAL, row_to_json, rows_from_json
from medcot.listener import Listener
from medcot.pipeline.prepare import Prepared
from medcot.runs.directory import Phase, RunDirectory


@dataclass(frozen=True, slots=True)
class LmEvalTask:
    """A task by the ``name`` that lm_eval knows; ``local`` if it was made of a question file.

    ``general`` tasks show what training cost, and are no part of the exam.
    """

    name: str
    local: bool = False
    general: bool = False


def task_folder(directory: RunDirectory) -> Path:
    """Return the folder of exported tasks, and of lm_eval's cache of an interrupted one."""
    return directory.path / "evaluation" / "lm_eval"


def ready_tasks(
    given: Sequence[str], config: RunConfig, directory: RunDirectory, general: Sequence[str] = ()
) -> list[LmEvalTask]:
    """Check what ``--lm-eval`` names, and make question files into tasks in :func:`task_folder`.

    ``general`` are the tasks of ``--ability-task``.

    Raises:
        InputError: lm_eval is not installed or has no such task, or a file holds no questions.
    """
    folder = task_folder(directory)
    tasks: list[LmEvalTask] = []
    for name, label in label_sets(given).items():
        local = is_data_file(name)
        tasks.append(LmEvalTask(label, local))
        if local:
            found = load_questions(name, config.language, option="--lm-eval")
            bridge.export_task(found.questions, folder, label)
    tasks += [LmEvalTask(name, general=True) for name in dict.fromkeys(general)]
    if tasks:
        bridge.check_tasks([task.name for task in tasks], folder)
    return tasks


def score_tasks(
    prepared: Prepared,
    loaded: LoadedModel,
    phase: Phase,
    tasks: Sequence[LmEvalTask],
    listener: Listener,
) -> None:
    """Let lm_eval score ``tasks`` with the loaded model, and add their rows to the phase's.

    A task that is complete on disk is skipped; an interrupted one continues from lm_eval's cache.
    """
    directory = prepared.directory
    path, folder = directory.evaluation(phase), task_folder(directory)
    for number, task in enumerate(tasks):
        saved = rows_from_json(directory.rows(path), where=str(path))
        known = [row for row in saved if row.task == task.name]
        if known and len(known) == known[0].of:
            continue
        listener.stage(f"lm_eval {phase}")
        cache = folder / f"{phase}-{number}-{task.name.replace('/', '-')}"
        rows = bridge.run_lm_eval(loaded.model, loaded.tokenizer, [task.name], folder, cache=cache)
        there = {(row.set, row.id) for row in known}
        for scored in rows:
            name = BY_LM_EVAL + task.name if task.local else scored.set
            # ``of`` tells an incomplete task from a complete one.
            kind = "ability" if task.general else scored.kind
            row = replace(scored, kind=kind, set=name, task=task.name, of=len(rows))
            if (row.set, row.id) not in there:
                directory.append(path, row_to_json(row))
        for left in folder.iterdir():
            if left.name.startswith(cache.name):
                left.unlink()
