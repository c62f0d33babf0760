"""Reads and writes ``report.json``. Reports of earlier versions are brought up to date."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from medcot.errors import InputError, one_line
from medcot.evaluation.interface import rows_from_json
from medcot.reporting.schema import SCHEMA_VERSION, Report
from medcot.reporting.wording import find_cautions, state_verdict
from medcot.runs.directory import RunDirectory

_ORDER = (
    "schema_version",
    "not_medical_advice",
    "verdict",
    "before",
    "after",
    "paired",
    "seeds",
    "detectable",
    "needed_rows",
    "better_rows",
    "worse_rows",
    "changed_questions",
    "lost_abilities",
    "letter_bias",
    "fixed_question",
    "lm_eval_agreement",
    "truncated",
    "leaks",
    "withheld",
    "chance",
    "cautions",
    "differences",
    "config",
    "facts",
    "figures",
)


def report_to_json(report: Report) -> dict[str, Any]:
    """Convert a report to the object that ``report.json`` holds."""
    found: dict[str, Any] = _adapter().dump_python(report, mode="json")
    if report.paired.mcq is None:
        for part in ("verdict", "before", "after", "paired", "detectable", "needed_rows"):
            del found[part]["mcq"]
        del found["verdict"]["mcq_sets"]
    if report.paired.abilities is None:
        for part in ("verdict", "before", "after", "paired", "detectable", "needed_rows"):
            del found[part]["abilities"]
        del found["verdict"]["ability_kinds"], found["verdict"]["messages"]["abilities"]
        del found["lost_abilities"]
    if report.paired.thought_gain is None:
        for part in ("before", "after", "paired"):
            del found[part]["thought_gain"], found[part]["thought_harm"]
    if report.paired.claims_rate is None:
        for part in ("before", "after", "paired"):
            del found[part]["claims_rate"]
    if report.letter_bias is None:
        del found["letter_bias"]
    if report.paired.nll is None:
        for part in ("detectable", "needed_rows"):
            del found[part]["nll"]
    found["facts"] = {name: one for name, one in found["facts"].items() if one is not None}
    if report.seeds is None:
        del found["seeds"]
    if not report.figures:
        del found["figures"]
    return {name: found[name] for name in _ORDER if name in found}


def read_report(run: Path) -> Report | None:
    """Read the report of the run in the folder ``run``; None if it has none.

    Raises:
        InputError: ``report.json`` is damaged, or of a later version.
    """
    directory = RunDirectory(run)
    if not directory.has("report.json"):
        return None
    return report_from_json(directory.read_json("report.json"), f"{run}/report.json")


def read_test_losses(directory: RunDirectory) -> dict[str, float]:
    """Return the mean loss of the test rows by phase, ``before`` and ``after`` training.

    A phase that is not scored, or not to its end, is left out. In nats per token, from the report
    or, as long as there is none, from the scored rows.

    Raises:
        InputError: a file is damaged.
    """
    report = read_report(directory.path)
    if report is not None:
        sides = {"before": report.before.nll, "after": report.after.nll}
        return {phase: loss for phase, loss in sides.items() if loss is not None}
    before = directory.evaluation("before")
    if not before.exists():
        return {}
    loss = _mean_loss(before, before.stat().st_mtime_ns)
    return {} if loss is None else {"before": loss}


@lru_cache(maxsize=8)
def _mean_loss(path: Path, _changed: int) -> float | None:
    """Return the mean loss of the scored rows in ``path``; the same file is read once."""
    lines = RunDirectory(path.parent.parent).rows(path)
    rows = [row for row in rows_from_json(lines, path.name) if row.kind == "case"]
    tokens = sum(row.completion_tokens or 0 for row in rows)
    return sum(row.nll_sum or 0.0 for row in rows) / tokens if tokens else None


def report_from_json(found: Mapping[str, Any], where: str = "report.json") -> Report:
    """Read the object that ``report.json`` holds, of this version or an earlier one.

    Raises:
        InputError: it lacks a field, has one of a wrong type, or is of a later version.
    """
    from pydantic import ValidationError

    version = found.get("schema_version", SCHEMA_VERSION)
    if version > SCHEMA_VERSION:
        needs = f"expected {SCHEMA_VERSION} or lower: update medcot, which wrote it"
        raise InputError(where, f"found schema_version {version}", needs)
    try:
        report: Report = _adapter().validate_python(_upgrade(found))
    except ValidationError as error:
        first = error.errors()[0]
        field_name = ".".join(map(str, first["loc"]))
        raise InputError(
            where,
            f"{field_name}: {one_line(first['msg'])}",
            "expected a report as medcot writes it",
        ) from None
    except (TypeError, ValueError):
        needs = "expected a report as medcot writes it"
        raise InputError(where, "paired: not an object of comparisons", needs) from None
    if "cautions" in found:
        return report
    try:
        verdict = replace(report.verdict, messages=state_verdict(report))
        return replace(report, verdict=verdict, cautions=find_cautions(report))
    except KeyError as error:
        got = f"{one_line(str(error), 60)} is missing in a part of it"
        raise InputError(where, got, "expected a report as medcot writes it") from None


def _upgrade(found: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a report without ``schema_version`` to the current version."""
    paired = dict(found.get("paired", {}))
    if "mcq" in paired:
        # A comparison without rows once held nothing but their number.
        none = {"difference": 0.0, "low": None, "high": None, "p_value": 1.0}
        paired["mcq"] = none | paired["mcq"]
    return {**found, "paired": paired, "schema_version": SCHEMA_VERSION}


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Report)
