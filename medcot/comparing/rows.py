"""Pairs the scored rows of two sides and compares them, measure by measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal

from medcot.catalog import Message
from medcot.comparing.sides import Side
from medcot.errors import InputError
from medcot.evaluation.interface import BY_LM_EVAL, ScoredRow, rows_from_json
from medcot.reporting.schema import Measure
from medcot.stats import paired
from medcot.stats.paired import PairedDifference, Verdict

Pairs = Sequence[tuple[ScoredRow, ScoredRow]]

BETTER: dict[Measure, Literal["lower", "higher"]] = {
    "nll": "lower",
    "mcq": "higher",
    "abilities": "higher",
}
"""The measures that have a verdict, as in a report; the others describe."""

_PROMPT_SETTINGS = ("style", "language", "model", "model_revision")
"""What decides the prompt of a question."""

_NOT_OF_INTEREST = ("preset", "wandb", "wandb_project", "wandb_job_type", "track")


@dataclass(frozen=True, slots=True)
class Compared:
    """A measure on both sides, and their difference, second minus first, over shared rows."""

    measure: Measure
    first: float
    second: float
    paired: PairedDifference
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class RunComparison:
    """What two sides have in common, and how they differ.

    ``settings`` are the fields of the config that differ, with both values; ``notes`` say what is
    compared on fewer rows, or not at all.
    """

    first: str
    second: str
    rows: int
    questions: int
    measures: tuple[Compared, ...]
    notes: tuple[Message, ...]
    settings: tuple[tuple[str, Any, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the facts, as ``medcot compare --json`` prints them."""
        return {
            "first": self.first,
            "second": self.second,
            "rows": self.rows,
            "questions": self.questions,
            "paired": {
                one.measure: {
                    "first": one.first,
                    "second": one.second,
                    **asdict(one.paired),
                    "verdict": one.verdict,
                }
                for one in self.measures
            },
            "notes": [str(one) for one in self.notes],
            "settings": {name: [a, b] for name, a, b in self.settings},
        }


def compare_sides(first: Side, second: Side) -> RunComparison:
    """Compare two sides on the rows that both have scored.

    Raises:
        InputError: A side is not scored, they share no row, or a shared row was asked otherwise.
    """
    mine, theirs = _read(first), _read(second)
    pairs = [(row, theirs[key]) for key, row in mine.items() if key in theirs]
    if not pairs:
        data = [side.directory.config().dataset for side in (first, second)]
        raise InputError(
            second.option,
            f"none of its test rows is one of {first.label} (data: {data[1]}, and {data[0]})",
            "compare runs on the same data",
        )
    _require_same_questions(pairs, first, second)
    found = list(_compare(pairs, first, second))
    return RunComparison(
        first=first.label,
        second=second.label,
        rows=sum(one.kind == "case" for one, _ in pairs),
        questions=sum(one.kind == "mcq" for one, _ in pairs),
        measures=tuple(one for one in found if isinstance(one, Compared)),
        notes=(
            *_count_unshared(mine, theirs, first, second),
            *(one for one in found if isinstance(one, Message)),
            *_cautions(first, second),
        ),
        settings=tuple(_differing_settings(first, second)),
    )


def _read(side: Side) -> dict[Any, ScoredRow]:
    """Return the test rows and questions of a side by their keys.

    Raises:
        InputError: It is not scored, or a loss is not finite.
    """
    path = side.directory.evaluation(side.phase)
    rows = rows_from_json(side.directory.rows(path), where=str(path))
    kept = [
        row
        for row in rows
        if row.kind in ("case", "ability")
        or (row.kind == "mcq" and not row.set.startswith(BY_LM_EVAL))
    ]
    if not kept:
        when = "before" if side.is_base else "after"
        got = f"it was not scored {when} training"
        raise InputError(side.option, got, "score it: medcot evaluate --run DIR")
    for row in kept:
        if not all(one is None or isfinite(one) for one in (row.nll, row.nll_sum)):
            raise InputError(f"{path}, row {row.id!r}", "its loss is not finite", "train it again")
    return {row.row_key: row for row in kept}


def _require_same_questions(pairs: Pairs, first: Side, second: Side) -> None:
    for mine, theirs in pairs:
        for name in ("prompt", "key"):
            if getattr(mine, name) == getattr(theirs, name):
                continue
            one, other = first.directory.config(), second.directory.config()
            differ = [
                f"{field} is {getattr(other, field)!r}, there {getattr(one, field)!r}"
                for field in _PROMPT_SETTINGS
                if getattr(one, field) != getattr(other, field)
            ]
            why = f" ({'; '.join(differ)})" if differ and name == "prompt" else ""
            raise InputError(
                f"{second.option}, row {theirs.id!r}",
                f"its {name} is not that of {first.label}{why}",
                "compare runs that were asked alike",
            )


def _count_unshared(
    mine: dict[Any, ScoredRow], theirs: dict[Any, ScoredRow], first: Side, second: Side
) -> Iterator[Message]:
    for own, other, side in ((mine, theirs, first), (theirs, mine, second)):
        if alone := len(own.keys() - other.keys()):
            yield Message("compare_unshared", {"n": alone, "run": side.label})


def _compare(pairs: Pairs, first: Side, second: Side) -> Iterator[Compared | Message]:
    """Yield the measures that can be compared, and a note for those that cannot."""
    one, other = first.directory.config(), second.directory.config()
    cases = [pair for pair in pairs if pair[0].kind == "case"]
    yield from _compare_losses(cases, one.seed)
    asked = [pair for pair in pairs if pair[0].kind == "mcq"]
    generated = asked and one.mcq_method == other.mcq_method == "generate"
    other_limit = one.max_new_tokens != other.max_new_tokens
    if asked and one.mcq_method != other.mcq_method:
        values = {"first": one.mcq_method, "second": other.mcq_method}
        yield Message("compare_other_method", values)
    elif any(len(a.letters) != len(b.letters) for a, b in asked):
        yield Message("compare_other_orders")
        yield from _compare_rates("mcq", asked, lambda row: row.correct_as_given)
    elif asked and not (generated and other_limit):
        yield from _compare_rates("mcq", asked, lambda row: row.correct)
    answered = [(a, b) for a, b in cases if a.output is not None and b.output is not None]
    items = [pair for pair in pairs if pair[0].kind == "ability"]
    if (answered or items or generated) and other_limit:
        values = {"first": one.max_new_tokens, "second": other.max_new_tokens}
        yield Message("compare_other_limit", values)
        return
    if items:
        yield from _compare_rates("abilities", items, lambda row: row.correct)
    if answered:
        yield from _compare_answers(answered, one.seed)


def _compare_losses(cases: Pairs, seed: int) -> Iterator[Compared | Message]:
    """Compare the mean loss per token; another tokenizer counts other tokens."""
    scored = [(a, b) for a, b in cases if a.nll_sum is not None and b.nll_sum is not None]
    if not scored:
        return
    if any(a.completion_tokens != b.completion_tokens for a, b in scored):
        yield Message("compare_other_tokens")
        return
    mine, theirs = ([row.nll_sum or 0.0 for row in side] for side in zip(*scored, strict=True))
    tokens = [row.completion_tokens or 0 for row, _ in scored]
    found = paired.compare_means(mine, theirs, tokens, seed=seed)
    if found is not None:
        total = sum(tokens)
        yield _judged("nll", sum(mine) / total, sum(theirs) / total, found)


def _compare_answers(answered: Pairs, seed: int) -> Iterator[Compared]:
    yield from _compare_rates("closed_rate", answered, lambda row: row.closed)
    yield from _compare_rates("finished_rate", answered, lambda row: row.finished)
    yield from _compare_rates("repetition_rate", answered, lambda row: row.repeats)
    yield from _compare_rates("language_match_rate", answered, lambda row: row.language_match)
    yield from _compare_lengths("answer_tokens", answered, lambda row: row.answer_tokens, seed)
    yield from _compare_lengths("thought_tokens", answered, lambda row: row.thought_tokens, seed)


def _compare_rates(
    measure: Measure, pairs: Pairs, read: Callable[[ScoredRow], bool | None]
) -> Iterator[Compared]:
    mine, theirs = ([bool(read(row)) for row in side] for side in zip(*pairs, strict=True))
    found = paired.compare_rates(mine, theirs)
    if found is not None:
        yield _judged(measure, sum(mine) / len(mine), sum(theirs) / len(theirs), found)


def _compare_lengths(
    measure: Measure, pairs: Pairs, read: Callable[[ScoredRow], int | None], seed: int
) -> Iterator[Compared]:
    mine, theirs = ([float(read(row) or 0) for row in side] for side in zip(*pairs, strict=True))
    found = paired.compare_means(mine, theirs, seed=seed)
    if found is not None:
        yield _judged(measure, sum(mine) / len(mine), sum(theirs) / len(theirs), found)


def _judged(measure: Measure, first: float, second: float, found: PairedDifference) -> Compared:
    better = BETTER.get(measure)
    return Compared(measure, first, second, found, found.verdict(better) if better else None)


def _cautions(first: Side, second: Side) -> Iterator[Message]:
    if not (first.is_base or second.is_base):
        yield Message("compare_one_seed")


def _differing_settings(first: Side, second: Side) -> Iterator[tuple[str, Any, Any]]:
    mine, theirs = (side.directory.config().model_dump(mode="json") for side in (first, second))
    for name, value in mine.items():
        if value != theirs[name] and name not in _NOT_OF_INTEREST:
            yield name, value, theirs[name]
