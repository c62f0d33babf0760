"""Makes the notebook's controls, one for each field of `RunConfig` that a page can change."""

from __future__ import annotations

from typing import Any

import marimo as mo

from medcot.config.schema import RunConfig, choices
from medcot.notebook.controls import (
    DATASETS,
    MACHINES,
    MODELS,
    SLIDERS,
    length_field,
    machine_for,
    marks,
    offered,
)
from medcot.notebook.jobs import LONGEST_QUESTION
from medcot.notebook.lesson import PRACTICE


def make_elements(base: RunConfig, *, editing: bool) -> dict[str, Any]:
    """Return controls by field, with ``base``'s values; the option's name is the label.

    ``length`` sets ``steps`` or ``epochs``, whichever ``base`` has.

    A served page (not ``editing``) offers known models and data sets only: a visitor who could
    name a path would read the server's files.
    """
    length = length_field(base)
    found: dict[str, Any] = {
        "model": _named("model", base.model, MODELS, editing=editing),
        "dataset": _named("dataset", base.dataset, DATASETS, editing=editing),
        "machine": mo.ui.dropdown(
            list(MACHINES), value=machine_for(base.preset), label="`machine`", full_width=True
        ),
        "language": mo.ui.dropdown(
            list(choices("language")), value=base.language, label="`language`"
        ),
    }
    for field in (*SLIDERS, length):
        value = getattr(base, field)
        found["length" if field == length else field] = mo.ui.slider(
            steps=marks(field, value),
            value=value,
            label=f"`{field}`",
            show_value=True,
            full_width=True,
        )
    return found


def make_lesson_elements(pairs: int, question: str) -> dict[str, Any]:
    """Return the lesson's own controls by name: how much it trains and how many rows it compares.

    Args:
        pairs: Test rows of the run that is shown.
        question: First text of the box for a question of the reader's own.
    """
    ranges = {
        "few_steps": (1, 12, 4),
        "few_rows": (1, PRACTICE, 2),
        "few_seeds": (1, 5, 2),
        "few_tokens": (8, 160, 48),
        "tests": (min(2, pairs), max(pairs, 1), max(pairs, 1)),
    }
    found: dict[str, Any] = {
        name: mo.ui.slider(
            start=low, stop=high, value=value, label=f"`{name}`", show_value=True, full_width=True
        )
        for name, (low, high, value) in ranges.items()
    }
    found["ask"] = mo.ui.text_area(
        value=question, rows=4, max_length=LONGEST_QUESTION, full_width=True, label="`ask`"
    )
    return found


def _named(field: str, value: str, known: tuple[str, ...], *, editing: bool) -> Any:
    if editing:
        return mo.ui.text(value=value, label=f"`{field}`", full_width=True)
    return mo.ui.dropdown(offered(known, value), value=value, label=f"`{field}`", full_width=True)
