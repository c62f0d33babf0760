"""Makes the notebook's controls, one for each field of `RunConfig` that a page can change."""

from __future__ import annotations

from typing import Any

import marimo as mo

from medcot.config.schema import RunConfig, choices
from medcot.notebook.controls import (
    DATASETS,
    MODELS,
    SLIDERS,
    length_field,
    marks,
    offered,
)


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


def _named(field: str, value: str, known: tuple[str, ...], *, editing: bool) -> Any:
    if editing:
        return mo.ui.text(value=value, label=f"`{field}`", full_width=True)
    return mo.ui.dropdown(offered(known, value), value=value, label=f"`{field}`", full_width=True)
