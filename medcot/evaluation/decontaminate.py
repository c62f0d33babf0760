"""Drops evaluation questions that overlap the training data, for sets added after training.

Before training, the overlapping training rows are excluded instead. Once a model is trained only
the questions can still go; they are listed and counted in the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from medcot.data.contamination import Overlap, find_overlaps
from medcot.evaluation.interface import ABILITIES, CASES, FIXED, EvaluationSuite, ScoredRow
from medcot.records import Case

Texts = Mapping[str, Sequence[tuple[str, str]]]
"""Set name to (id, question) pairs."""


def collect_texts(suite: EvaluationSuite) -> dict[str, list[tuple[str, str]]]:
    """Collect the questions that no training row may share, by set."""
    texts = {CASES: [(case.id, case.question) for case in suite.cases]}
    if suite.fixed:
        texts[FIXED] = [(suite.fixed.id, suite.fixed.question)]
    if suite.abilities:
        texts[ABILITIES] = [(item.id, item.prompt) for item in suite.abilities]
    for name, questions in suite.questions.items():
        texts[name] = [(question.id, question.question) for question in questions]
    return texts


def decontaminate_suite(
    suite: EvaluationSuite, trained: Sequence[Case]
) -> tuple[EvaluationSuite, tuple[Overlap, ...]]:
    """Split ``suite`` into one without the questions that ``trained`` rows share, and the hits."""
    texts = collect_texts(suite)
    leaks = _all_leaks(trained, {name: texts[name] for name in suite.questions})
    hit = {(leak.set_name, leak.evaluation_id) for leak in leaks}
    kept = {
        name: tuple(one for one in questions if (name, one.id) not in hit)
        for name, questions in suite.questions.items()
    }
    left = {name: questions for name, questions in kept.items() if questions}
    return replace(suite, questions=left), leaks


def decontaminate_rows(
    rows: Sequence[ScoredRow], suite: EvaluationSuite, trained: Sequence[Case]
) -> tuple[list[ScoredRow], tuple[Overlap, ...]]:
    """Do the same for scored rows of sets outside ``suite``, by their prompts."""
    texts: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        if row.kind == "mcq" and row.set not in suite.questions:
            texts.setdefault(row.set, []).append((row.id, row.prompt))
    leaks = _all_leaks(trained, texts)
    hit = {(leak.set_name, leak.evaluation_id) for leak in leaks}
    return [row for row in rows if (row.set, row.id) not in hit], leaks


def _all_leaks(trained: Sequence[Case], texts: Texts) -> tuple[Overlap, ...]:
    """Find every question that at least one row hits. :func:`find_overlaps` reports only each row's
    worst hit in a set, so its hits are removed and the rest is searched again."""
    found: list[Overlap] = []
    left = {name: list(pairs) for name, pairs in texts.items() if pairs}
    while leaks := find_overlaps(trained, left) if trained and left else []:
        found += {(leak.set_name, leak.evaluation_id): leak for leak in leaks}.values()
        hit = {(leak.set_name, leak.evaluation_id) for leak in leaks}
        left = {
            name: [pair for pair in pairs if (name, pair[0]) not in hit]
            for name, pairs in left.items()
        }
    return tuple(found)
