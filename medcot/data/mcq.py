"""Loads multiple-choice questions from a file, the bundled samples or a known benchmark."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from medcot.config.schema import BUNDLED_DATA, SHORT_DATA
from medcot.data.cases import check_text, read_id, read_language, read_text
from medcot.data.hub import load_hub_rows
from medcot.data.mcq_catalog import ANSWER, BENCHMARKS, Benchmark
from medcot.data.mcq_layouts import MOST_OPTIONS, recognise_questions
from medcot.data.readers import Fault, SourceRow, Values, describe_table, describe_type
from medcot.data.sources import (
    describe_passed_over,
    kind_of,
    list_files,
    read_files,
    sample_files,
)
from medcot.data.streams import format_of
from medcot.data.text import find_flaw, normalise, printable
from medcot.errors import InputError, nearest, one_line
from medcot.records import Language, Question

MOST_QUESTIONS = 1_000_000
"""Rows of a set, all of which are held in memory."""


@dataclass(slots=True)
class ValidatedQuestions:
    """The outcome of checking a source's rows, and the hub commit they are from (or "").

    ``faults`` are what somebody has to mend. ``unfit`` are sound rows that cannot be scored fairly,
    as published sets have them: a question asked twice, a right answer that two letters state.
    """

    rows: int = 0
    questions: list[Question] = field(default_factory=list[Question])
    faults: list[Fault] = field(default_factory=list[Fault])
    unfit: list[Fault] = field(default_factory=list[Fault])
    revision: str = ""
    notes: tuple[str, ...] = ()


class QuestionSet(NamedTuple):
    """The questions of a set, and what to tell about rows that were left out (or "")."""

    questions: tuple[Question, ...]
    note: str


def load_questions(name: str, language: Language, option: str = "--mcq") -> QuestionSet:
    """Load the questions of ``name``: ``sample``, a file, or one of :data:`BENCHMARKS`.

    ``language`` is that of the samples, and of rows in a file that name none. Rows that cannot be
    scored fairly are left out; in a benchmark from the hub, invalid rows are, too. Errors name
    ``option``.

    Raises:
        InputError: an unknown name, a file that cannot be read, or a row that is wrong.
        RunFailed: the hub or the connection to it gave up.
    """
    try:
        found = read_question_set(name, language)
        if found.faults and name not in BENCHMARKS:
            first, more = found.faults[0], len(found.faults) - 1
            raise first.as_error(f" (and {more} more: medcot data {name})" if more else "")
        if not found.questions:
            raise InputError(name, "no valid question found", "expected at least one")
    except InputError as error:
        raise InputError(f"{option} {error.where}", error.got, error.needs) from None
    own = {BUNDLED_DATA, *BENCHMARKS}
    notes = [f"{name}: {note}" for note in found.notes if name not in own]
    left_out = _describe_left_out(name, found)
    return QuestionSet(
        tuple(found.questions), "; ".join([*notes, *([left_out] if left_out else [])])
    )


def _describe_left_out(name: str, found: ValidatedQuestions) -> str:
    left_out = [*found.faults, *found.unfit]
    if not left_out:
        return ""
    first = left_out[0].problem
    return f"{len(left_out)} of {found.rows} questions of {name} left out, the first: {first}"


def read_question_set(name: str, language: Language) -> ValidatedQuestions:
    """Read and check all rows of ``name``."""
    if known := BENCHMARKS.get(name):
        return _gather_known(name, known)
    try:
        kind = kind_of(name)
    except InputError:
        kind = "hub"
    if kind == "hub" or name == SHORT_DATA:
        needs = f"expected a file, sample or one of {', '.join(BENCHMARKS)}"
        raise InputError(name, "unknown set", needs + nearest(name, list(BENCHMARKS)))
    if name == BUNDLED_DATA:
        return validate_questions(read_files(sample_files("questions", language)), language)
    paths = list_files(Path(name))
    found = validate_questions(read_files(paths), language)
    tables = [path for path in paths if format_of(path) in (".csv", ".tsv")]
    told = [note for path in tables for note in describe_table(path)]
    found.notes = (*found.notes, *told, *describe_passed_over(Path(name)))
    return found


def validate_questions(rows: Iterable[SourceRow], language: Language) -> ValidatedQuestions:
    """Check every row, of whatever layout (see :mod:`medcot.data.mcq_layouts`).

    Raises:
        InputError: the answers can be read in two ways, or there are too many rows.
    """
    read, layout = recognise_questions(_at_most(rows))
    found = ValidatedQuestions(notes=(layout,) if layout else ())
    ids: set[str] = set()
    earlier: dict[str, str] = {}
    for row in read:
        found.rows += 1
        question, faults = _read_question(row, language)
        if question and question.id in ids:
            got = f"{printable(question.id)!r}, which an earlier row has"
            faults = [Fault(row.where, "id", got, "an id of its own, or none")]
        if faults or not question:
            found.faults += faults
            continue
        ids.add(question.id)
        if unfit := _find_unfitness(row, question, earlier):
            found.unfit.append(unfit)
        else:
            found.questions.append(question)
    return found


def _at_most(rows: Iterable[SourceRow]) -> list[SourceRow]:
    found: list[SourceRow] = []
    for row in rows:
        found.append(row)
        if len(found) > MOST_QUESTIONS:
            got, needs = "found more questions", f"expected at most {MOST_QUESTIONS:,}"
            raise InputError(row.where, got, needs)
    return found


def _find_unfitness(row: SourceRow, question: Question, earlier: dict[str, str]) -> Fault | None:
    """Return why a sound question cannot be scored fairly; ``earlier`` gets its text and place.

    A question asked twice counts twice in the paired test. Where another letter states the right
    answer, too, a right choice is counted as wrong; two equal wrong options change nothing.
    """
    compared = _compared(question)
    if compared in earlier:
        got = f"the question and options of {earlier[compared]}"
        return Fault(row.where, "question", got, "each question once")
    earlier[compared] = row.where
    right = question.options[question.answer].strip()
    letters = [letter for letter, text in question.options.items() if text.strip() == right]
    if len(letters) > 1:
        got = f"the right answer under {' and '.join(letters)}"
        return Fault(row.where, "options", got, "a text of its own for the right letter")
    return None


def _compared(question: Question) -> str:
    """Return the text by which a question counts as repeated: context, question and options."""
    options = sorted(question.options.values())
    return normalise("\n".join([question.context, question.question, *options]))


def _gather_known(name: str, known: Benchmark) -> ValidatedQuestions:
    rows: list[SourceRow] = []
    revision, notes = "", tuple[str, ...]()
    for config in known.configs:
        loaded = load_hub_rows(known.repository, config, split=known.split)
        revision, notes = loaded.revision, notes + loaded.notes
        for row, values in _convert(loaded.rows, known):
            number = len(rows) + 1
            start = {"id": f"{name}-{number}", "source": name}
            rows.append(replace(row, number=number, values=start | dict(values), header=""))
    found = validate_questions(rows, known.language)
    found.revision, found.notes = revision, notes
    return found


def _convert(rows: Iterable[SourceRow], known: Benchmark) -> Iterator[tuple[SourceRow, Values]]:
    for row in rows:
        try:
            values = known.convert(row.values)
        except (KeyError, TypeError, IndexError):
            got = f"found the columns {', '.join(row.values)}"
            raise InputError(row.where, got, "the set's published columns are expected") from None
        if values is not None:
            yield row, values


def _read_question(row: SourceRow, language: Language) -> tuple[Question | None, list[Fault]]:
    if row.fault:
        return None, [row.fault]
    identity, faults = read_id(row)
    spoken, language_faults = read_language(row, language)
    faults += language_faults + check_text(row, "question")
    faults += check_text(row, "context", required=False)
    faults += check_text(row, "source", required=False)
    options, option_faults = _read_options(row)
    faults += option_faults or _check_answer(row, options)
    if faults:
        return None, faults
    return Question(
        id=identity,
        question=row.values["question"],
        options=options,
        answer=row.values[ANSWER],
        language=spoken,
        context=read_text(row, "context"),
        source=read_text(row, "source"),
    ), []


def _read_options(row: SourceRow) -> tuple[dict[str, str], list[Fault]]:
    """Return options by letter, without letters that have no text (Parquet adds them)."""
    given = row.values.get("options")
    if not isinstance(given, Mapping):
        got = describe_type(given) if "options" in row.values else "no such field"
        needs = 'an object like {"A": "text", "B": "text"}, or a list of texts in all rows'
        if isinstance(given, str):
            needs += " (in a table: columns A, B and so on)"
        return {}, [Fault(row.where, "options", got, needs)]
    cells = cast("Mapping[object, Any]", given)
    options = {str(letter): text for letter, text in cells.items() if text is not None}
    if not 2 <= len(options) <= MOST_OPTIONS:
        needs = f"two to {MOST_OPTIONS}"
        return {}, [Fault(row.where, "options", f"{len(options)} options", needs)]
    for letter, text in options.items():
        if len(letter) != 1 or letter not in string.ascii_uppercase:
            got = f"the letter {printable(letter)!r}"
            return {}, [Fault(row.where, "options", got, "capital letters from A on")]
        if not isinstance(text, str):
            got = f"option {letter}: {describe_type(text)} {printable(repr(text))[:40]}"
            return {}, [Fault(row.where, "options", got, "a text for each letter, in quotes")]
        if not text.strip():
            got = f"option {letter} without a text"
            return {}, [Fault(row.where, "options", got, "a text for each letter")]
        if flaw := find_flaw(text):
            return {}, [Fault(row.where, f"options {letter}", *flaw)]
    return options, []


def _check_answer(row: SourceRow, options: Mapping[str, str]) -> list[Fault]:
    letter, text = row.values.get(ANSWER), row.values.get("answer")
    if not isinstance(letter, str) or letter not in options:
        got = one_line(printable(repr(letter)), 60) if ANSWER in row.values else "no such field"
        return [
            Fault(row.where, row.shown.get(ANSWER, ANSWER), got, f"one of {', '.join(options)}")
        ]
    if isinstance(text, str) and text.strip() not in ("", letter, options[letter].strip()):
        got = f"{printable(text)[:60]!r}, but option {letter} says otherwise"
        return [Fault(row.where, "answer", got, f"the text of option {letter}, or nothing")]
    return []
