"""Draws how far a study is: a row for each arm, a column for each seed."""

from __future__ import annotations

from rich.table import Table

from medcot.catalog import duration
from medcot.records import StudyState, TrainingState
from medcot.terminal import show_line


def draw_study(state: StudyState, lines: int) -> Table:
    """Return the table of at most ``lines`` arms, those that are not done first of all."""
    names = list(state.arms)
    first = min(state.done, max(0, len(names) - lines))
    left = (
        "" if state.seconds_left is None else f", about {duration(state.seconds_left, 'en')} left"
    )
    title = f"{state.done} of {len(names)} arms done{left}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("arm")
    for number in range(1, 1 + max(map(len, state.arms.values()))):
        table.add_column(f"seed {number}", justify="right")
    ordered = sorted(names, key=lambda name: not _is_done(state, name))
    for name in ordered[first : first + lines]:
        table.add_row(show_line(name), *map(_word, state.arms[name]))
    return table


def _is_done(state: StudyState, name: str) -> bool:
    return all(one.state == "scored" for one in state.arms[name])


def _word(one: TrainingState) -> str:
    if one.state == "training":
        return f"step {one.step}/{one.steps}"
    loss = "" if one.loss is None else f" {one.loss:.4f}"
    return f"{one.state}{loss}"
