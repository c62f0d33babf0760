"""Adapter to lm-evaluation-harness: our sets as its tasks, its results as our scored rows.

An exported set shows the model exactly what our likelihood method shows it, prompt and
continuations, so that both choose the same option for every question.
"""

# lm_eval has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from medcot.data import prompts
from medcot.errors import InputError, RunFailed, nearest, one_line
from medcot.evaluation import answer_extraction
from medcot.evaluation.interface import ScoredRow
from medcot.evaluation.scorers import make_row
from medcot.network import limit_hub_requests
from medcot.records import Question

METRICS = ("acc", "exact_match", "pass@1")
"""Metrics that mark each question right or wrong; a task's first one counts. Others, such as
acc_norm, choose differently from our own method."""


def export_task(questions: Iterable[Question], folder: Path, name: str = "medcot") -> Path:
    """Write ``NAME.jsonl`` and the task ``NAME.yaml`` into ``folder``; return the task's path.

    Run it with ``lm_eval --include_path FOLDER --tasks NAME``. The task holds the absolute path of
    its rows: edit it if you move them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / f"{name}.jsonl"
    lines = [json.dumps(_as_document(one), ensure_ascii=False) for one in questions]
    rows.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    path = folder / f"{name}.yaml"
    # JSON is valid YAML, without YAML's surprises about "no" and colons.
    path.write_text(json.dumps(task, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def run_lm_eval(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    include: Path | None = None,
    batch_size: int = 8,
    cache: Path | None = None,
) -> list[ScoredRow]:
    """Score the loaded ``model`` on ``tasks`` with the installed lm_eval.

    ``include`` is a folder of further tasks, such as those of :func:`export_task`. Each answer is
    stored at once in files whose names begin with ``cache``, so that a killed call can continue:
    use one path per model.

    Raises:
        InputError: lm_eval is not installed or has no such task, or the task has no metric that
            marks each question right or wrong.
        RunFailed: lm_eval failed, usually because a task's data set could not be downloaded.
    """
    manager = check_tasks(tasks, include)
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        results = simple_evaluate(
            model=cast("Any", HFLM)(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=True,
            use_cache=str(cache) if cache else None,
        )
    except Exception as error:
        raise RunFailed(
            "lm-eval",
            f"{type(error).__name__}: {one_line(str(error))}.",
            "Most tasks fetch their data from the hub: check the network and the task's name.",
        ) from error
    samples: dict[str, list[dict[str, Any]]] = cast("Any", results or {}).get("samples", {})
    return [row for task, found in samples.items() for row in read_samples(task, found)]


def check_tasks(tasks: Sequence[str], include: Path | None = None) -> Any:
    """Return lm_eval's task manager after checking that it has all of ``tasks``.

    Raises:
        InputError: lm_eval is not installed, or has no such task.
    """
    try:
        import lm_eval.evaluator  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        needs = "run pip install 'medcot[lm-eval]'"
        raise InputError("--lm-eval", "the package lm_eval is not installed", needs) from None
    limit_hub_requests()
    own = tuple(sorted(path.stem for path in include.glob("*.yaml"))) if include else ()
    folder = str(include) if own else ""
    # Its own tasks only if needed: listing all 14,000 takes lm_eval many seconds.
    manager = _task_manager(folder, own, with_defaults=not set(tasks) <= set(own))
    check_names(tasks, manager.all_tasks)
    return manager


@lru_cache(maxsize=2)
def _task_manager(folder: str, names: tuple[str, ...], *, with_defaults: bool) -> Any:  # noqa: ARG001
    """Load the tasks in ``folder`` and, if ``with_defaults``, lm_eval's own. ``names``, those of
    ``folder``, are part of the cache key: a new one makes it read the folder again."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder or None, include_defaults=with_defaults)


def read_samples(task: str, samples: Sequence[dict[str, Any]]) -> list[ScoredRow]:
    """Convert lm_eval's logged samples of one task to rows, one per document, in its order.

    Raises:
        InputError: no metric of the task marks each question right or wrong.
    """
    rows: dict[int, ScoredRow] = {}
    given = {sample["doc_id"]: str(sample["doc"].get("id", "")) for sample in samples}
    named = "" not in given.values() and len(set(given.values())) == len(given)
    for sample in samples:
        metric = next((name for name in METRICS if sample.get(name) in (0, 1)), None)
        if metric is None:
            known = ", ".join(sample.get("metrics", [])) or "none"
            raise InputError(
                f"--lm-eval {task}",
                f"found the metrics {known}",
                f"expected one of {', '.join(METRICS)}",
            )
        identity = given[sample["doc_id"]] if named else str(sample["doc_id"])
        row = replace(
            make_row("mcq", task, identity, _context(sample)),
            correct=bool(sample[metric]),
            metric=metric,
            key=str(sample["target"]),
        )
        # A task with several filters logs each document once per filter: the first counts.
        rows.setdefault(sample["doc_id"], row)
    return [rows[number] for number in sorted(rows)]


def check_names(tasks: Sequence[str], known: Sequence[str]) -> None:
    """Refuse tasks that are not ``known``.

    Raises:
        InputError: names the first unknown task and the nearest known name.
    """
    for task in tasks:
        if task not in known:
            needs = f"expected a task of lm_eval{nearest(task, list(known))} (lm-eval ls tasks)"
            raise InputError("--lm-eval", f"found {task!r}", needs)


def _as_document(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "prompt": prompts.choice_cue(question),
        "choices": answer_extraction.option_continuations(question),
        "gold": list(question.options).index(question.answer),
    }


def _context(sample: dict[str, Any]) -> str:
    """Return the prompt of the first request, in either of the two shapes that lm_eval logs."""
    arguments = sample.get("arguments")
    if isinstance(arguments, dict):
        requests = cast("dict[str, dict[str, Any]]", arguments)
        first = next(iter(requests.values()), None)
        return str(first.get("arg_0", "")) if first else ""
    return str(arguments[0][0]) if arguments else ""
