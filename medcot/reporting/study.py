"""Analyses a study: picks an arm by validation loss, and says what its test rows show.

Where thoughts vary, no arm is picked: each is compared with the one whose thoughts were kept.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from medcot.catalog import Message, say
from medcot.config.schema import RunConfig
from medcot.errors import InputError
from medcot.evaluation.interface import ScoredRow
from medcot.reporting.markdown import escape, render_table
from medcot.reporting.wording import format_change, format_interval, format_p
from medcot.stats import crossed, paired
from medcot.stats.libraries import upper_t
from medcot.stats.paired import LEVEL, PairedDifference, Verdict

MORE_ROWS = 1000
"""Rows for which the learning curve says what they would buy."""
FEWEST_SIZES = 3
"""Numbers of training rows that a learning curve needs."""


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What an arm's trainings gave: the loss and the scored rows of each.

    ``losses`` are those of validation rows; where thoughts vary, of the test rows' answers.
    ``rows`` counts the training rows that it saw, which may be fewer than the arm asks for.
    """

    name: str
    values: Mapping[str, Any]
    losses: tuple[float, ...]
    before: Sequence[ScoredRow]
    after: Sequence[Sequence[ScoredRow]]
    rows: int

    @property
    def mean(self) -> float:
        """Return the mean of ``losses`` over seeds."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """An arm in a report: its losses by seed, their mean and standard deviation."""

    name: str
    values: Mapping[str, Any]
    losses: tuple[float, ...]
    mean: float
    deviation: float | None


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """What more training rows would bring, by a line through the loss over the log of rows.

    ``gain`` is the fall of the validation loss that ``MORE_ROWS`` rows beyond the ``largest``
    number would buy, plus or minus ``half_width`` (95 %).
    """

    largest: int
    gain: float
    half_width: float


@dataclass(frozen=True, slots=True)
class Contrast:
    """The loss of an arm's answers minus that of the ``reference`` arm's, on the same test rows.

    Trainings with the same seed are paired. Interval and p of ``nll`` are corrected for the number
    of contrasts (Bonferroni).
    """

    arm: str
    reference: str
    nll: PairedDifference | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Study:
    """A study's outcome. The test rows were looked at once, for the ``chosen`` arm.

    Interval and p of ``nll`` and ``mcq`` are corrected for the number of arms (Bonferroni). Where
    thoughts vary, there are ``contrasts`` instead, and no arm is ``chosen``.
    """

    arms: tuple[ArmSummary, ...]
    chosen: str | None
    seeds: int
    nll: PairedDifference | None
    nll_verdict: Verdict
    mcq: PairedDifference | None
    mcq_verdict: Verdict | None
    curve: LearningCurve | None
    contrasts: tuple[Contrast, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``study_report.json`` holds."""
        return asdict(self)


def analyse_study(
    config: RunConfig, vary: Mapping[str, Sequence[Any]], arms: Sequence[ArmResult]
) -> Study:
    """Pick the arm with the lowest mean validation loss, and compare its test rows with before.

    Raises:
        InputError: A training lacks some of the rows.
    """
    if "thought" in vary:
        return _contrast_arms(arms, config.seed)
    best = min(arms, key=lambda arm: arm.mean)
    nll = _compare_losses(best, len(arms), config.seed)
    mcq = _compare_answers(best, len(arms), config.seed)
    return Study(
        arms=tuple(map(_sum_up, arms)),
        chosen=best.name,
        seeds=len(best.losses),
        nll=nll,
        nll_verdict=_verdict(nll, "lower"),
        mcq=mcq,
        mcq_verdict=_verdict(mcq, "higher") if mcq else None,
        curve=_fit_curve(vary, arms, best),
    )


def _contrast_arms(arms: Sequence[ArmResult], seed: int) -> Study:
    kept = (arm for arm in arms if arm.values["thought"] == "kept")
    reference = next(kept, arms[0])
    others = [arm for arm in arms if arm is not reference]
    found = {arm.name: _contrast(arm, reference, len(others), seed) for arm in others}
    return Study(
        arms=tuple(map(_sum_up, arms)),
        chosen=None,
        seeds=len(reference.losses),
        nll=None,
        nll_verdict="no evidence",
        mcq=None,
        mcq_verdict=None,
        curve=None,
        contrasts=tuple(
            Contrast(name, reference.name, nll, _verdict(nll, "lower"))
            for name, nll in found.items()
        ),
    )


def _contrast(
    arm: ArmResult, reference: ArmResult, contrasts: int, seed: int
) -> PairedDifference | None:
    rows = [row for row in reference.before if row.kind == "case"]
    tokens = [float(row.completion_tokens or 0) for row in rows]
    changes: list[list[float]] = []
    for ours, theirs in zip(_sides(arm, rows), _sides(reference, rows), strict=True):
        if [row.completion_tokens for row in ours] != [row.completion_tokens for row in theirs]:
            raise InputError(f"arm {arm.name}", "its test rows have other tokens", "begin it anew")
        pairs = zip(ours, theirs, strict=True)
        changes.append([(one.nll_sum or 0.0) - (other.nll_sum or 0.0) for one, other in pairs])
    zeros, level = [0.0] * len(rows), paired.corrected_level(contrasts)
    if len(changes) > 1:
        found = crossed.compare_losses(zeros, changes, tokens, seed=seed, level=level)
    else:
        found = paired.compare_means(zeros, changes[0], tokens, seed=seed, level=level)
    return found and correct_for_choice(found, contrasts)


def correct_for_choice(found: PairedDifference, arms: int) -> PairedDifference:
    """Return ``found``, whose interval is at the level of so many arms, with its p for them."""
    return replace(found, p_value=min(1.0, found.p_value * arms))


def _compare_losses(arm: ArmResult, arms: int, seed: int) -> PairedDifference | None:
    rows = [row for row in arm.before if row.kind == "case"]
    after = _sides(arm, rows)
    base = [row.nll_sum or 0.0 for row in rows]
    tokens = [float(row.completion_tokens or 0) for row in rows]
    losses = [[row.nll_sum or 0.0 for row in side] for side in after]
    level = paired.corrected_level(arms)
    if len(losses) > 1:
        found = crossed.compare_losses(base, losses, tokens, seed=seed, level=level)
    else:
        found = paired.compare_means(base, losses[0], tokens, seed=seed, level=level)
    return found and correct_for_choice(found, arms)


def _compare_answers(arm: ArmResult, arms: int, seed: int) -> PairedDifference | None:
    rows = [row for row in arm.before if row.kind == "mcq" and row.metric is None]
    after = _sides(arm, rows)
    base = [bool(row.correct) for row in rows]
    right = [[bool(row.correct) for row in side] for side in after]
    level = paired.corrected_level(arms)
    if len(right) > 1:
        found = crossed.compare_rates(base, right, seed=seed, level=level)
    else:
        found = paired.compare_rates(base, right[0], level)
    return found and correct_for_choice(found, arms)


def _sides(arm: ArmResult, rows: Sequence[ScoredRow]) -> list[list[ScoredRow]]:
    sides: list[list[ScoredRow]] = []
    for side in arm.after:
        found = {row.row_key: row for row in side}
        if missing := sum(row.row_key not in found for row in rows):
            got = f"{missing} of its test rows are missing"
            raise InputError(f"arm {arm.name}", got, "continue the study")
        sides.append([found[row.row_key] for row in rows])
    return sides


def _sum_up(arm: ArmResult) -> ArmSummary:
    deviation = float(np.std(arm.losses, ddof=1)) if len(arm.losses) > 1 else None
    return ArmSummary(arm.name, dict(arm.values), arm.losses, arm.mean, deviation)


def _verdict(found: PairedDifference | None, better: Literal["lower", "higher"]) -> Verdict:
    return found.verdict(better) if found else "no evidence"


def _fit_curve(
    vary: Mapping[str, Sequence[Any]], arms: Sequence[ArmResult], best: ArmResult
) -> LearningCurve | None:
    """Fit the loss over the log of training rows, of the arms that are else like ``best``."""
    if "samples" not in vary:
        return None
    others = {name: value for name, value in best.values.items() if name != "samples"}
    losses: dict[int, tuple[float, ...]] = {}
    for arm in arms:
        if others.items() <= arm.values.items():
            losses[arm.rows] = losses.get(arm.rows, ()) + arm.losses
    return fit_learning_curve(losses) if len(losses) >= FEWEST_SIZES else None


def fit_learning_curve(losses: Mapping[int, Sequence[float]]) -> LearningCurve | None:
    """Fit a line through losses over the log of rows; None without more points than it has ends.

    Args:
        losses: The losses by the number of training rows.
    """
    points = [(math.log(size), loss) for size, found in losses.items() for loss in found]
    x, y = np.array(points).T
    free = len(points) - 2
    spread = float(((x - x.mean()) ** 2).sum())
    if free < 1 or not spread:
        return None
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    residual = y - y.mean() - slope * (x - x.mean())
    error = math.sqrt(float((residual**2).sum()) / free / spread)
    largest = max(losses)
    further = math.log((largest + MORE_ROWS) / largest)
    half = upper_t((1 - LEVEL) / 2, free) * error * further
    return LearningCurve(largest, -slope * further, half)


def render_study(study: Study, language: str = "en") -> str:
    """Render ``study.md``."""
    heads = "heads_study_answer" if study.contrasts else "heads_study"
    n = len(study.contrasts) or len(study.arms)
    parts = [
        f"# {say('study_title', language)}",
        *(one.text(language) for one in state_study(study)),
        f"> {say('research_output', language)}",
        f"## {say('study_arms', language)}",
        render_table(heads, ":-- --: --: --: :--", _rows(study, language), language),
        say("study_contrast_note" if study.contrasts else "study_note", language, n=n),
    ]
    return "\n\n".join(parts) + "\n"


def name_loss(vary: Collection[str]) -> Message:
    """Name the loss that arms are compared by."""
    return Message("study_answer_loss" if "thought" in vary else "study_validation_loss")


def state_study(study: Study) -> list[Message]:
    """State which arm was chosen, what its test rows show, and what more rows would buy.

    Where thoughts vary, state how each arm differs from that whose thoughts were kept.
    """
    if study.chosen is None:
        return [_state_contrast(one) for one in study.contrasts]
    said = [Message("study_chosen", {"arm": study.chosen, "n": len(study.arms)})]
    found: tuple[tuple[Literal["nll", "mcq"], PairedDifference | None, Verdict | None], ...] = (
        ("nll", study.nll, study.nll_verdict), ("mcq", study.mcq, study.mcq_verdict),
    )  # fmt: skip
    for name, difference, verdict in found:
        if difference is None or verdict is None:
            continue
        values = {
            "measure": Message(f"measure_{name}"),
            "change": format_change(name, difference.difference),
            "interval": format_interval(name, difference),
            "p": format_p(difference.p_value),
            "verdict": Message(f"called_{verdict.replace(' ', '_')}"),
        }
        said.append(Message("study_test", values))
    if study.curve:
        values = {"more": MORE_ROWS, "largest": study.curve.largest}
        values |= {"gain": f"{study.curve.gain:.3f}", "half": f"{study.curve.half_width:.3f}"}
        said.append(Message("study_curve", values))
    return said


def _state_contrast(found: Contrast) -> Message:
    values = {"arm": found.arm, "reference": found.reference}
    if found.nll is None:
        return Message("study_no_contrast", values)
    word = {"improved": "lower", "worse": "higher", "no evidence": "no_evidence"}[found.verdict]
    return Message(
        "study_contrast",
        values
        | {
            "change": format_change("nll", found.nll.difference),
            "interval": format_interval("nll", found.nll),
            "p": format_p(found.nll.p_value),
            "verdict": Message(f"study_{word}"),
        },
    )


def _rows(study: Study, language: str) -> list[list[str]]:
    rows: list[list[str]] = []
    for arm in sorted(study.arms, key=lambda one: one.mean):
        spread = "" if arm.deviation is None else f"{arm.deviation:.4f}"
        chosen = say("study_is_chosen", language) if arm.name == study.chosen else ""
        values = ", ".join(f"{name} {value}" for name, value in arm.values.items())
        rows.append([escape(values), str(len(arm.losses)), f"{arm.mean:.4f}", spread, chosen])
    return rows
