"""``report.json`` from the rows before and after: pairs, verdict, what could have been shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from medcot.config.schema import RunConfig
from medcot.errors import InputError
from medcot.evaluation.interface import BY_LM_EVAL, Examination, Row
from medcot.evaluation.suite import counted_once, in_order, sets_of, summarise
from medcot.records import Question
from medcot.reporting.examples import changed_questions, fixed_question, telling_rows
from medcot.reporting.figures import write_figures
from medcot.reporting.markdown import render_markdown
from medcot.reporting.wording import NOT_MEDICAL_ADVICE, say_verdict
from medcot.stats import paired as statistics
from medcot.stats import power
from medcot.stats.paired import Paired

__all__ = ["build_report", "render_markdown", "write_figures"]

LISTED = ("leaks", "withheld")
FEW_POINTS = 0.05  # of right answers: what a reader may want to be told apart from chance
Better = Literal["lower", "higher"]
Pairs = list[tuple[Row, Row]]

_RATES = {
    "closed_rate": "closed",
    "finished_rate": "finished",
    "repetition_rate": "repeats",
    "language_match_rate": "language_match",
}
_LENGTHS = {"answer_tokens": "answer_tokens", "thought_tokens": "thought_tokens"}


def build_report(
    before: Sequence[Row],
    after: Sequence[Row],
    examination: Examination,
    config: RunConfig,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """The content of ``report.json``. ``facts`` are what the run knows beside: kept as given.

    Of them ``leaks`` (training rows that an evaluation set holds too), ``withheld`` (questions
    that were trained on) and ``judge`` are shown in their own places. Differences are after minus
    before: a fall of ``nll`` is good.

    Raises:
        InputError: a side lacks some of what the examination asks.
    """
    sides = {"before": before, "after": after}
    before, after = (_whole(rows, examination, side) for side, rows in sides.items())
    pairs = _pair(before, after)
    paired = _compare(pairs, before, examination, config.seed)
    verdict = _verdicts(paired)
    _forget_what_is_shown(paired, verdict)
    report: dict[str, Any] = {
        "not_medical_advice": NOT_MEDICAL_ADVICE,
        "verdict": verdict,
        "before": summarise(before, examination),
        "after": summarise(after, examination),
        "paired": paired,
        "detectable": _of_endpoints(paired, "detectable"),
        "needed_rows": _of_endpoints(paired, "needed_rows"),
        **telling_rows(pairs, examination),
        "changed_questions": changed_questions(pairs, examination),
        "fixed_question": fixed_question(pairs, examination),
        "lm_eval_agreement": _agreement(before, after, examination),
        "truncated": _truncated(before, after, config),
        "leaks": facts.get("leaks", []),
        "withheld": facts.get("withheld", []),
        "chance": _chance(examination),
        "differences": [
            {"id": b["id"], "before": b["nll"], "after": a["nll"]}
            for b, a in pairs
            if b["kind"] == "case"
        ],
        "config": config.model_dump(mode="json"),
        "facts": {name: value for name, value in facts.items() if name not in LISTED},
    }
    verdict["sentence"] = say_verdict(report)
    return report


def _whole(rows: Sequence[Row], examination: Examination, side: str) -> list[Row]:
    ordered, missing = in_order(rows, examination)
    if missing:
        raise InputError(
            f"evaluation/{side}.jsonl",
            f"{missing} of the rows to compare are missing",
            "score them with medcot evaluate --run",
        )
    return ordered


def _pair(before: Sequence[Row], after: Sequence[Row]) -> Pairs:
    """The rows that both sides have, in the order of before."""
    found = {(row["kind"], row["set"], row["id"]): row for row in after}
    keyed = [((row["kind"], row["set"], row["id"]), row) for row in before]
    return [(row, found[key]) for key, row in keyed if key in found]


def _compare(
    pairs: Pairs, before: Sequence[Row], examination: Examination, seed: int
) -> dict[str, Any]:
    cases = [(b, a) for b, a in pairs if b["kind"] == "case"]
    answered = [(b, a) for b, a in cases if b["output"] is not None and a["output"] is not None]
    losses = (*_sides(cases, "nll_sum"), [b["completion_tokens"] for b, _ in cases])
    found: dict[str, Paired | None] = {"nll": statistics.compare_means(*losses, seed=seed)}
    for name, field in _RATES.items():
        found[name] = statistics.compare_rates(*_sides(answered, field))
    for name, field in _LENGTHS.items():
        found[name] = statistics.compare_means(*_sides(answered, field), seed=seed)
    paired: dict[str, Any] = {name: asdict(one) if one else None for name, one in found.items()}
    if paired["nll"]:
        paired["nll"]["detectable"] = power.detectable_mean(*losses)
        paired["nll"]["needed_rows"] = power.rows_for_mean(*losses)
    if names := sets_of(before, examination):
        paired["mcq"] = _compare_sets(pairs, names, examination)
    return paired


def _compare_sets(pairs: Pairs, names: list[str], examination: Examination) -> dict[str, Any]:
    """All questions together as the one comparison asked beforehand; the sets, corrected."""
    asked = [(b, a) for b, a in pairs if b["kind"] == "mcq"]
    level = statistics.corrected_level(len(names))
    per_set = {
        name: statistics.compare_rates(
            *_sides([pair for pair in asked if pair[0]["set"] == name], "correct"), level
        )
        for name in names
    }
    corrected = statistics.correct({name: one for name, one in per_set.items() if one})
    sides = _sides([pair for pair in asked if counted_once(pair[0], examination)], "correct")
    together = statistics.compare_rates(*sides)
    return (asdict(together) if together else {"n": 0}) | {
        "detectable": power.detectable_rate(*sides),
        "needed_rows": power.rows_for_rate(*sides) if together else None,
        "needed_for_5_points": power.rows_to_find(*sides, FEW_POINTS) if together else None,
        "sets": {name: asdict(one) for name, one in corrected.items()},
    }


def _sides(pairs: Pairs, field: str) -> tuple[list[Any], list[Any]]:
    return [b[field] for b, _ in pairs], [a[field] for _, a in pairs]


def _verdicts(paired: dict[str, Any]) -> dict[str, Any]:
    verdict: dict[str, Any] = {"nll": _verdict(paired["nll"], "lower")}
    if mcq := paired.get("mcq"):
        verdict["mcq"] = _verdict(mcq, "higher")
        verdict["mcq_sets"] = {name: _verdict(one, "higher") for name, one in mcq["sets"].items()}
    return verdict


def _verdict(paired: dict[str, Any] | None, better: Better) -> statistics.Verdict:
    if not paired or not paired["n"]:
        return "no evidence"
    fields = ("difference", "low", "high", "p_value", "n", "level")
    return Paired(**{name: paired[name] for name in fields}).verdict(better)


def _forget_what_is_shown(paired: dict[str, Any], verdict: dict[str, Any]) -> None:
    """How many rows would show a difference is said only of one that was not shown."""
    for name in ("nll", "mcq"):
        if paired.get(name) and verdict[name] != "no evidence":
            paired[name]["needed_rows"] = None


def _of_endpoints(paired: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: paired[name].get(field) for name in ("nll", "mcq") if paired.get(name)}


def _agreement(
    before: Sequence[Row], after: Sequence[Row], examination: Examination
) -> dict[str, dict[str, int]]:
    """Of sets that lm_eval scored too: how often it judged a question as medcot did."""
    found: dict[str, dict[str, int]] = {}
    for side, rows in (("before", before), ("after", after)):
        ours = {(r["set"], r["id"]): r["correct"] for r in rows if r["kind"] == "mcq"}
        for name in examination.questions:
            theirs = {key[1]: right for key, right in ours.items() if key[0] == BY_LM_EVAL + name}
            both = [
                right == ours[name, one] for one, right in theirs.items() if (name, one) in ours
            ]
            if both:
                found.setdefault(name, {})[side] = sum(both)
                found[name]["n"] = len(both)
    return {name: counts for name, counts in found.items() if len(counts) == 3}


def _truncated(before: Sequence[Row], after: Sequence[Row], config: RunConfig) -> dict[str, Any]:
    """How many generated answers reached the limit instead of ending."""

    def count(rows: Sequence[Row]) -> int:
        return sum(row["finished"] is False for row in rows)

    return {
        "before": count(before),
        "after": count(after),
        "of": sum(row["output"] is not None for row in after),
        "max_new_tokens": config.max_new_tokens,
    }


def _chance(examination: Examination) -> dict[str, float]:
    """The accuracy of guessing, by set."""

    def of(asked: Sequence[Question]) -> float:
        return sum(1 / len(question.options) for question in asked) / len(asked)

    return {name: of(asked) for name, asked in examination.questions.items()}
