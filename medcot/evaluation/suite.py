"""One examination, held before and after: what is asked, the answers as rows, and their summary.

Models are known only by three callables, so the same code examines a network, a server or a table.
Each row is handed over as soon as it is known; rows that are there already are not asked for again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from medcot.config.schema import RunConfig
from medcot.data.mcq_catalog import label_sets
from medcot.evaluation.batching import ask_groups, groups_of
from medcot.evaluation.interface import (
    BY_LM_EVAL,
    CASES,
    FIXED,
    Ask,
    Examination,
    Key,
    ModelTools,
    Row,
)
from medcot.records import Case, Question
from medcot.stats.paired import rate_interval


def make_examination(
    config: RunConfig,
    cases: Sequence[Case],
    fixed: Case | None,
    questions: Mapping[str, Sequence[Question]],
) -> Examination:
    """The examination that ``config`` asks for, from the test rows and the sets at hand.

    Where fewer questions are asked than a set has, they are chosen by a hash of their id, so that
    a larger number keeps those of a smaller one.
    """
    kept = tuple(cases)[: config.test_samples]
    labels = label_sets(questions, taken=(CASES, FIXED))
    return Examination(
        cases=kept,
        generated=kept[: config.generate_samples],
        fixed=fixed,
        questions={
            labels[name]: _choose(asked, config.mcq_samples, config.seed)
            for name, asked in questions.items()
            if asked
        },
        style=config.style,
        mcq_method=config.mcq_method,
    )


def examine(
    examination: Examination,
    tools: ModelTools,
    done: Iterable[Row],
    save: Callable[[Row], None],
    on_progress: Callable[[int, int], None] | None = None,
    ask: Ask = ask_groups,
) -> list[Row]:
    """Ask everything that is not in ``done``; one row for each item, in the examination's order.

    ``save`` gets each new row at once. Items go to the model by length, so that a batch wastes
    little on padding, and always in the same groups (a half-saved one is asked again), so that a
    resumed examination gives the rows of an uninterrupted one to the last digit. ``ask`` has the
    groups answered, in this process or elsewhere.
    """
    order = list(_keys(examination))
    rows = {_key(row): row for row in done if _key(row) in set(order)}
    groups = [
        [key for key, _ in group if key not in rows] for group, _ in groups_of(examination, tools)
    ]
    open_groups = [index for index, wanted in enumerate(groups) if wanted]
    if on_progress and rows:
        on_progress(len(rows), len(order))
    for index, answered in zip(open_groups, ask(examination, tools, open_groups), strict=True):
        for row in answered:
            if _key(row) in groups[index]:
                rows[_key(row)] = row
                save(row)
        if on_progress:
            on_progress(len(rows), len(order))
    return [rows[key] for key in order]


def summarise(rows: Sequence[Row], examination: Examination) -> Row:
    """One side of the report: what the rows say together."""
    cases = [row for row in rows if row["kind"] == "case"]
    answered = [row for row in cases if row["output"] is not None]
    fixed = next((row for row in rows if row["kind"] == "fixed"), None)
    spoken = [row for row in rows if row["output"] is not None]
    summary: Row = {
        "nll": _ratio(cases, "nll_sum", "completion_tokens"),
        "rows": len(cases),
        "answered_rows": len(answered),
        "closed_rate": _mean(answered, "closed"),
        "finished_rate": _mean(answered, "finished"),
        "repetition_rate": _mean(answered, "repeats"),
        "language_match_rate": _mean(answered, "language_match"),
        "answer_tokens": _mean(answered, "answer_tokens"),
        "thought_tokens": _mean(answered, "thought_tokens"),
        "truncated": sum(not row["finished"] for row in spoken),
        "generated": len(spoken),
        "claims": fixed["claims"] if fixed else [],
    }
    by_set = {
        name: [row for row in rows if row["kind"] == "mcq" and row["set"] == name]
        for name in sets_of(rows, examination)
    }
    if by_set:
        every = [row for found in by_set.values() for row in found]
        together = [row for row in every if counted_once(row, examination)]
        per_set = {name: _accuracy(found) for name, found in by_set.items()}
        summary["mcq"] = _accuracy(together) | {"sets": per_set}
    return summary


def sets_of(rows: Sequence[Row], examination: Examination) -> list[str]:
    """The names of the multiple-choice sets: those asked, then those that came from elsewhere."""
    found = (row["set"] for row in rows if row["kind"] == "mcq")
    return list(dict.fromkeys([*examination.questions, *found]))


def counted_once(row: Row, examination: Examination) -> bool:
    """Whether a row counts among all questions: lm_eval's answer to one that is asked does not."""
    name = row["set"]
    return not (name.startswith(BY_LM_EVAL) and name[len(BY_LM_EVAL) :] in examination.questions)


def in_order(rows: Iterable[Row], examination: Examination) -> tuple[list[Row], int]:
    """The rows as the examination asks them, then lm_eval's; and how many are missing.

    Others, of sets that are not asked any more, are passed over.
    """
    found = {_key(row): row for row in rows}
    asked = list(_keys(examination))
    known = [found.pop(key) for key in asked if key in found]
    others = [row for row in found.values() if "metric" in row]
    return [*known, *others], len(asked) - len(known)


def _choose(questions: Sequence[Question], count: int, seed: int) -> tuple[Question, ...]:
    if not count or count >= len(questions):
        return tuple(questions)
    place = {
        index: hashlib.sha256(f"{seed}:{question.id}".encode()).digest()
        for index, question in enumerate(questions)
    }
    chosen = sorted(sorted(place, key=place.__getitem__)[:count])
    return tuple(questions[index] for index in chosen)


def _key(row: Row) -> Key:
    return (row["kind"], row["set"], row["id"])


def _keys(examination: Examination) -> Iterator[Key]:
    yield from (("case", "", case.id) for case in examination.cases)
    if examination.fixed:
        yield ("fixed", "", examination.fixed.id)
    for name, asked in examination.questions.items():
        yield from (("mcq", name, question.id) for question in asked)


def _accuracy(rows: Sequence[Row]) -> Row:
    right = sum(bool(row["correct"]) for row in rows)
    bounds = rate_interval(right, len(rows))
    return {
        "accuracy": right / len(rows) if rows else None,
        "low": bounds[0] if bounds else None,
        "high": bounds[1] if bounds else None,
        "n": len(rows),
        "unparsed": sum(bool(row.get("unparsed")) for row in rows),
        "unfinished": sum(bool(row.get("unfinished")) for row in rows),
    }


def _mean(rows: Sequence[Row], field: str) -> float | None:
    return sum(row[field] for row in rows) / len(rows) if rows else None


def _ratio(rows: Sequence[Row], above: str, below: str) -> float | None:
    total = sum(row[below] for row in rows)
    return sum(row[above] for row in rows) / total if total else None
