"""From scored rows to the report's files: what is compared, and what is said of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from medcot.data.case_store import cases_with
from medcot.data.contamination import Leak
from medcot.data.token_store import ids_of_rows
from medcot.evaluation.decontaminate import withhold_rows
from medcot.evaluation.interface import Row
from medcot.evaluation.judge import judge_answers
from medcot.listener import Listener
from medcot.pipeline.prepare import Prepared
from medcot.reporting.build import build_report, render_markdown, write_figures

JUDGED = "evaluation/judge.jsonl"


def write_report(prepared: Prepared, listener: Listener) -> dict[str, Any]:
    """Compare before and after, and write ``report.json``, ``report.md`` and the figures.

    Raises:
        InputError: one of the two was not scored in full.
    """
    directory, config = prepared.directory, prepared.config
    directory.set_stage("report")
    listener.stage("report")
    cases = cases_with(prepared.dataset.cases, ids_of_rows(prepared.rows))
    before, withheld = withhold_rows(_rows(prepared, "before"), prepared.examination, cases)
    after, _ = withhold_rows(_rows(prepared, "after"), prepared.examination, cases)
    facts = _facts(prepared, (*prepared.withheld, *withheld))
    if config.judge_url:
        facts["judge"] = _judge(prepared, before, after)
    report = build_report(before, after, prepared.examination, config, facts)
    directory.write_json("report.json", report)
    write_figures(report, list(directory.rows(directory.events)), directory.path)
    directory.write_text("report.md", render_markdown(report))
    return report


def _rows(prepared: Prepared, phase: Any) -> list[Row]:
    directory = prepared.directory
    return list(directory.rows(directory.evaluation(phase)))


def _judge(prepared: Prepared, before: Sequence[Row], after: Sequence[Row]) -> dict[str, Any]:
    """The judge's opinion; what it said of the same answers before is not asked again."""
    directory, config = prepared.directory, prepared.config
    path = directory.path / JUDGED
    return judge_answers(
        before,
        after,
        prepared.examination,
        config.judge_url,
        config.judge_model,
        known={row["contest"]: row["outcome"] for row in directory.rows(path)},
        save=lambda contest, outcome: directory.append(
            path, {"contest": contest, "outcome": outcome}
        ),
    )


def _facts(prepared: Prepared, withheld: Sequence[Leak]) -> dict[str, Any]:
    """What the report says of the run. Nothing in it changes between two runs of one seed."""
    return {
        "dataset": {
            "name": prepared.dataset.name,
            "revision": prepared.dataset.revision,
            "fingerprint": prepared.dataset.fingerprint,
            "synthetic": prepared.dataset.synthetic,
        },
        "rows": len(prepared.rows),
        "dropped": [asdict(row) for row in prepared.dropped],
        "leaks": [asdict(leak) for leak in prepared.leaks],
        "withheld": [asdict(leak) for leak in withheld],
        "steps": prepared.config.total_steps(len(prepared.rows)),
        "trainable_parameters": prepared.plan.trainable_parameters,
        "total_parameters": prepared.plan.total_parameters,
    }
