"""Questions that trained rows give away, left out of sets that came after the training.

Before training, rows that an evaluation set holds too are not trained on. A set that is asked of a
model trained already comes too late for that: there the questions go instead, listed and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from medcot.data.contamination import Leak, find_leaks
from medcot.evaluation.interface import CASES, FIXED, Examination, Row
from medcot.records import Case

Texts = Mapping[str, Sequence[tuple[str, str]]]
"""Set name to (id, question) pairs."""


def evaluation_texts(examination: Examination) -> dict[str, list[tuple[str, str]]]:
    """The questions that no training row may share, by set."""
    texts = {CASES: [(case.id, case.question) for case in examination.cases]}
    if examination.fixed:
        texts[FIXED] = [(examination.fixed.id, examination.fixed.question)]
    for name, questions in examination.questions.items():
        texts[name] = [(question.id, question.question) for question in questions]
    return texts


def withhold(
    examination: Examination, trained: Sequence[Case]
) -> tuple[Examination, tuple[Leak, ...]]:
    """``examination`` without the questions that a row of ``trained`` shares, and these."""
    texts = evaluation_texts(examination)
    leaks = _all_leaks(trained, {name: texts[name] for name in examination.questions})
    hit = {(leak.set_name, leak.evaluation_id) for leak in leaks}
    kept = {
        name: tuple(one for one in questions if (name, one.id) not in hit)
        for name, questions in examination.questions.items()
    }
    left = {name: questions for name, questions in kept.items() if questions}
    return replace(examination, questions=left), leaks


def withhold_rows(
    rows: Sequence[Row], examination: Examination, trained: Sequence[Case]
) -> tuple[list[Row], tuple[Leak, ...]]:
    """The same for scored rows of sets that the examination does not ask, by their prompts."""
    texts: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        if row["kind"] == "mcq" and row["set"] not in examination.questions:
            texts.setdefault(row["set"], []).append((row["id"], row["prompt"]))
    leaks = _all_leaks(trained, texts)
    hit = {(leak.set_name, leak.evaluation_id) for leak in leaks}
    return [row for row in rows if (row["set"], row["id"]) not in hit], leaks


def _all_leaks(trained: Sequence[Case], texts: Texts) -> tuple[Leak, ...]:
    """Every question that is hit, by one row at least. :func:`find_leaks` names each row's worst
    hit in a set, so what it named is taken out and the rest looked at again."""
    found: list[Leak] = []
    left = {name: list(pairs) for name, pairs in texts.items() if pairs}
    while leaks := find_leaks(trained, left) if trained and left else []:
        found += {(leak.set_name, leak.evaluation_id): leak for leak in leaks}.values()
        hit = {(leak.set_name, leak.evaluation_id) for leak in leaks}
        left = {
            name: [pair for pair in pairs if (name, pair[0]) not in hit]
            for name, pairs in left.items()
        }
    return tuple(found)
