"""Words a comparison for a terminal; the notebook makes its table from the same cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medcot.catalog import say
from medcot.comparing.rows import Compared, RunComparison
from medcot.reporting.wording import format_change, format_interval, format_p, format_value

NUMBERS = ("difference", "interval", "p_value", "n")
"""The catalog's names of the columns after the two sides."""


def state_verdicts(comparison: RunComparison, language: str) -> Iterator[str]:
    """State which side is better by loss and by right answers, if that can be said."""
    for one in comparison.measures:
        if one.verdict is None:
            continue
        better, worse = comparison.second, comparison.first
        if one.verdict == "worse":
            better, worse = worse, better
        code = "compare_no_evidence" if one.verdict == "no evidence" else "compare_better"
        measure = say(f"measure_{one.measure}", language)
        yield say(code, language, measure=measure, better=better, worse=worse)


def table_cells(comparison: RunComparison, language: str) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of the paired table."""
    headings = [say("measure", language), comparison.first, comparison.second]
    headings += [say(name, language) for name in NUMBERS]
    return headings, [_cells(one, language) for one in comparison.measures]


def _cells(one: Compared, language: str) -> list[str]:
    return [
        say(f"measure_{one.measure}", language),
        format_value(one.measure, one.first),
        format_value(one.measure, one.second),
        format_change(one.measure, one.paired.difference, language),
        format_interval(one.measure, one.paired, language),
        format_p(one.paired.p_value),
        str(one.paired.n),
    ]


def state_scope(comparison: RunComparison, language: str) -> str:
    """State what is compared over how many rows and questions."""
    return say(
        "compare_scope",
        language,
        first=comparison.first,
        second=comparison.second,
        rows=comparison.rows,
        questions=comparison.questions,
    )


def describe_comparison(comparison: RunComparison, language: str = "en") -> Iterator[str]:
    """Yield the lines that a terminal shows: scope, table, verdicts, notes, settings."""
    yield state_scope(comparison, language)
    yield ""
    yield from align(*table_cells(comparison, language))
    yield ""
    yield from state_verdicts(comparison, language)
    yield from (note.text(language) for note in comparison.notes)
    for name, first, second in comparison.settings:
        yield say("compare_setting", language, name=name, first=first, second=second)


def align(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table: the first column to the left, numbers to the right."""
    whole = [headings, *rows]
    widths = [max(len(row[at]) for row in whole) for at in range(len(headings))]
    for row in whole:
        first, *numbers = row
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
