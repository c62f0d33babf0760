"""The two sides of a comparison: which model of which run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medcot.errors import InputError
from medcot.runs.directory import Phase, RunDirectory


@dataclass(frozen=True, slots=True)
class Side:
    """One model: the base (``before``) or the tuned one (``after``) of a run."""

    label: str
    directory: RunDirectory
    phase: Phase

    @property
    def is_base(self) -> bool:
        """Return whether it is the untuned model."""
        return self.phase == "before"

    @property
    def option(self) -> str:
        """Return how an error names the run."""
        return f"--run {self.directory.path}"


def choose_sides(runs: Sequence[RunDirectory]) -> tuple[Side, Side]:
    """Return the tuned models of two runs, or base and tuned model of one.

    Raises:
        InputError: There are more than two runs, or twice the same one.
    """
    if len(runs) > 2:
        raise InputError(
            "--run", f"found {len(runs)} runs", "compare two, or base and tuned of one"
        )
    first, second = runs[0], runs[-1]
    if len(runs) == 1:
        return Side("base", first, "before"), Side("tuned", first, "after")
    if first.path.resolve() == second.path.resolve():
        needs = "name two runs, or one for its base and tuned model"
        raise InputError(f"--run {second.path}", "it is named twice", needs)
    labels = [one.path.resolve().name for one in runs]
    if labels[0] == labels[1]:
        labels = [str(one.path) for one in runs]
    return Side(labels[0], first, "after"), Side(labels[1], second, "after")
