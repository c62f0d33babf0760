"""Describes a data set for ``medcot data``: counts, lengths, and everything wrong with it."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

from medcot.config.schema import RunConfig
from medcot.data.dataset import option_named, read_source
from medcot.data.layouts import QUESTION, RESPONSE, THOUGHT, looks_like_questions
from medcot.data.mcq import read_question_set
from medcot.data.mcq_catalog import BENCHMARKS
from medcot.data.sources import kinds_of, list_files, read_file
from medcot.errors import one_line
from medcot.records import Case, Dropped, Problem, Question

SHOWN = 20
"""Problems, duplicates and sources that are listed; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of one field over the kept rows, in characters."""

    mean: float
    median: int
    p95: int
    longest: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """The description of a data set. ``rows`` = ``kept`` + ``duplicates`` + rows with problems."""

    name: str
    kind: Literal["cases", "questions"]
    rows: int
    kept: int
    problems: tuple[Problem, ...]
    duplicates: tuple[Dropped, ...]
    lengths: Mapping[str, Lengths]
    languages: Mapping[str, int]
    specialties: Mapping[str, int]
    sources: Mapping[str, int]
    example: Mapping[str, str]
    fingerprint: str
    revision: str = ""
    notes: tuple[str, ...] = field(default=())


def inspect_dataset(config: RunConfig) -> Inspection:
    """Describe ``config.dataset``: cases, multiple-choice questions, or a known question set.

    Raises:
        InputError: an unknown name, or a source that cannot be read at all.
        RunFailed: the hub or the connection to it gave up.
    """
    with option_named("data"):
        if config.dataset in BENCHMARKS or _holds_questions(config):
            return _inspect_questions(config)
        return _inspect_cases(config)


def describe_inspection(inspection: Inspection) -> Iterator[str]:
    """Yield the inspection as lines for a terminal."""
    yield f"{inspection.name}: {inspection.rows} rows, {inspection.kept} {inspection.kind} kept"
    yield from inspection.notes
    if inspection.revision:
        yield f"commit {inspection.revision}"
    yield f"fingerprint {inspection.fingerprint[:16]}"
    for title, lengths in inspection.lengths.items():
        yield (
            f"{title:<12} characters: mean {lengths.mean:.0f}, median {lengths.median},"
            f" 95 % {lengths.p95}, longest {lengths.longest}"
        )
    groups = {"language": inspection.languages, "specialty": inspection.specialties}
    for title, counts in {**groups, "source": inspection.sources}.items():
        if counts:
            shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:SHOWN])
            more = f" and {len(counts) - SHOWN} others" if len(counts) > SHOWN else ""
            yield f"{title:<12} {shown}{more}"
    for title, text in inspection.example.items():
        yield f"first row, {title}: {one_line(text)}"
    duplicates = [f"{row.id}: {row.reason}" for row in inspection.duplicates]
    yield from _listed("duplicated questions, left out", duplicates)
    yield from _listed("problems", [str(problem) for problem in inspection.problems])


def _listed(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title}: {len(lines)}"
        yield from (f"  {line}" for line in lines[:SHOWN])
    if len(lines) > SHOWN:
        yield f"  ... and {len(lines) - SHOWN} more (--json lists them all)"


def _holds_questions(config: RunConfig) -> bool:
    """Return whether a file's first readable row has options; otherwise it counts as cases."""
    if config.columns or kinds_of(config.dataset) != ("file",):
        return False
    rows = read_file(list_files(Path(config.dataset))[0])
    first = next((row for row in rows if row.values), None)
    own = {QUESTION, RESPONSE}
    return first is not None and looks_like_questions(first.values) and not own <= set(first.values)


def _inspect_cases(config: RunConfig) -> Inspection:
    source = read_source(config)
    found = source.found
    lengths = {name: array("q") for name in (QUESTION, THOUGHT, RESPONSE)}
    languages, specialties, sources = Counter[str](), Counter[str](), Counter[str]()
    for case in found.cases:
        texts = (case.question, case.thought, case.response)
        for column, text in zip(lengths.values(), texts, strict=True):
            if text:
                column.append(len(text))
        languages[case.language] += 1
        specialties[case.specialty] += 1
        sources[case.source] += 1
    return Inspection(
        name=config.dataset,
        kind="cases",
        rows=found.rows,
        kept=len(found.cases),
        problems=tuple(fault.problem for fault in found.faults),
        duplicates=tuple(row.in_english() for row in found.duplicates),
        lengths=_lengths(lengths),
        languages=_counts(languages),
        specialties=_counts(specialties),
        sources=_counts(sources),
        example=_example(found.cases[0]) if found.cases else {},
        fingerprint=found.cases.fingerprint,
        revision=source.revision,
        notes=source.notes,
    )


def _inspect_questions(config: RunConfig) -> Inspection:
    found = read_question_set(config.dataset, config.language)
    questions = found.questions
    lengths = {
        "question": [len(question.question) for question in questions],
        "context": [len(question.context) for question in questions if question.context],
        "options": [sum(map(len, question.options.values())) for question in questions],
    }
    return Inspection(
        name=config.dataset,
        kind="questions",
        rows=found.rows,
        kept=len(questions),
        problems=tuple(fault.problem for fault in (*found.faults, *found.unfit)),
        duplicates=(),
        lengths=_lengths(lengths),
        languages=_counts(Counter(question.language for question in questions)),
        specialties={},
        sources=_counts(Counter(question.source for question in questions)),
        example=_question_example(questions[0]) if questions else {},
        fingerprint=hashlib.sha256(repr([asdict(q) for q in questions]).encode()).hexdigest(),
        revision=found.revision,
        notes=found.notes,
    )


def _lengths(columns: Mapping[str, Sequence[int]]) -> dict[str, Lengths]:
    return {name: _measure(column) for name, column in columns.items() if column}


def _measure(column: Sequence[int]) -> Lengths:
    """Summarise lengths; median and 95th percentile are lengths that occur (nearest rank)."""
    lengths = sorted(column)
    last = len(lengths) - 1
    middle, high = lengths[last // 2], lengths[min(last, -(-95 * len(lengths) // 100) - 1)]
    return Lengths(round(fmean(lengths), 1), middle, high, lengths[last])


def _counts(names: Counter[str]) -> dict[str, int]:
    """Return how often each name occurs, most frequent first, without empty names."""
    return {name: count for name, count in names.most_common() if name}


def _example(case: Case) -> dict[str, str]:
    before = {f"{turn.role} turn": turn.content for turn in case.turns}
    thought = {THOUGHT: case.thought} if case.thought else {}
    return {"id": case.id, **before, QUESTION: case.question, **thought, RESPONSE: case.response}


def _question_example(question: Question) -> dict[str, str]:
    options = "; ".join(f"{letter}. {text}" for letter, text in question.options.items())
    return {
        "id": question.id,
        "question": question.question,
        "options": options,
        "answer": question.answer,
    }
