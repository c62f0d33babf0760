"""Two runs row by row as a page shows them; for one run, its base and tuned model."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from medcot.catalog import Message, say
from medcot.errors import InputError
from medcot.notebook.views.markup import callout, card, items, join, paragraph, small, table, text
from medcot.runs.directory import RunDirectory
from medcot.runs.history import RunRecord

if TYPE_CHECKING:
    from medcot.comparing.rows import RunComparison


def show_paired(one: RunRecord, other: RunRecord, language: str) -> str:
    """The paired table of two runs, or of one that is named twice.

    Nothing for a bundled run, whose scored rows are not in the package, nor on Kaggle, where the
    package is sent without the comparison. Runs that cannot be compared say why.
    """
    if one.bundled or other.bundled or find_spec("medcot.comparing") is None:
        return ""
    from medcot.comparing.rows import compare_sides
    from medcot.comparing.sides import choose_sides

    paths = [one.path] if one.path.resolve() == other.path.resolve() else [one.path, other.path]
    try:
        found = compare_sides(*choose_sides([RunDirectory(path) for path in paths]))
    except InputError as error:
        got = error.got.text(language) if isinstance(error.got, Message) else error.got
        return callout("note", say("compare_title", language), small(f"{error.where}: {got}"))
    return card(say("compare_title", language), _body(found, language))


def _body(found: RunComparison, language: str) -> str:
    from medcot.comparing.wording import state_scope, state_verdicts, table_cells

    headings, rows = table_cells(found, language)
    cells = ((text(first), *map(_number, rest)) for first, *rest in rows)
    said = items([*state_verdicts(found, language), *(one.text(language) for one in found.notes)])
    return join(paragraph(state_scope(found, language)), table(headings, cells), said)


def _number(value: str) -> str:
    return f'<span class="mc-number">{text(value)}</span>'
