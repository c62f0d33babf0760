"""A run's tasks of lm-evaluation-harness: its own by name, and question files of ours as tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medcot.config.schema import RunConfig
from medcot.data.mcq import load_questions
from medcot.data.mcq_catalog import label_sets
from medcot.data.readers import READERS
from medcot.engines.base import LoadedModel
from medcot.evaluation import lm_eval as bridge
from medcot.evaluation.interface import BY_LM_EVAL, row_to_json, rows_from_json
from medcot.listener import Listener
from medcot.pipeline.prepare import Prepared
from medcot.runs.directory import Phase, RunDirectory


@dataclass(frozen=True, slots=True)
class Task:
    """``name`` as lm_eval knows it; ``local`` where it is a file of ours made into a task."""

    name: str
    local: bool = False


def task_folder(directory: RunDirectory) -> Path:
    """Exported tasks, and what lm_eval has answered so far of one that was cut short."""
    return directory.path / "evaluation" / "lm_eval"


def ready_tasks(given: Sequence[str], config: RunConfig, directory: RunDirectory) -> list[Task]:
    """What ``--lm-eval`` names, checked; question files become tasks in :func:`task_folder`.

    Raises:
        InputError: lm_eval is not installed, it has no such task, or a file is no set of questions.
    """
    folder = task_folder(directory)
    tasks: list[Task] = []
    for name, label in label_sets(given).items():
        local = Path(name).suffix.lower() in READERS
        tasks.append(Task(label, local))
        if local:
            questions = load_questions(name, config.language, option="--lm-eval")
            bridge.export_task(questions, folder, label)
    if tasks:
        bridge.check_tasks([task.name for task in tasks], folder)
    return tasks


def score_tasks(
    prepared: Prepared,
    loaded: LoadedModel,
    phase: Phase,
    tasks: Sequence[Task],
    listener: Listener,
) -> None:
    """Let lm_eval score ``tasks`` with the loaded model; their rows join those of the phase.

    A task that is whole on disk is not asked again, and one that was cut short goes on from what
    lm_eval had answered.
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
        there = {row.row_key for row in known}
        for scored in rows:
            name = BY_LM_EVAL + task.name if task.local else scored.set
            # ``of`` tells half a task from a whole one.
            row = replace(scored, set=name, task=task.name, of=len(rows))
            if row.row_key not in there:
                directory.append(path, row_to_json(row))
        for left in folder.iterdir():
            if left.name.startswith(cache.name):
                left.unlink()
