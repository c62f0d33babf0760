"""From scored rows to the report's files: what is compared, and what the run itself knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from medcot.data.case_list import select_cases
from medcot.data.tokenized import list_row_ids
from medcot.evaluation.decontaminate import decontaminate_rows
from medcot.evaluation.interface import ScoredRow, rows_from_json
from medcot.evaluation.judge import JudgeResult, judge_answers
from medcot.listener import Listener
from medcot.pipeline.prepare import Prepared
from medcot.reporting.build import build_report
from medcot.reporting.exports import read_exports
from medcot.reporting.figures import write_figures
from medcot.reporting.schema import (
    DatasetFacts,
    EnvironmentFacts,
    Facts,
    FallbackFact,
    Report,
    StepLoss,
    ValidationFacts,
)
from medcot.reporting.seeds import SeedRows
from medcot.reporting.storage import report_to_json
from medcot.reporting.webpage import write_report_files
from medcot.runs.directory import Phase, RunDirectory

JUDGED = "evaluation/judge.jsonl"
"""The judge's preferences by pair and its decisions, so that none is asked for twice."""


def write_report(prepared: Prepared, listener: Listener, *, figures: bool = True) -> Report:
    """Compare before and after; write the report as JSON, as Markdown and as a page, and figures.

    Raises:
        InputError: one of the two was not scored in full.
    """
    directory, config = prepared.directory, prepared.config
    directory.set_stage("report")
    listener.stage("report")
    cases = select_cases(prepared.dataset.cases, list_row_ids(prepared.rows))
    before, withheld = decontaminate_rows(_rows(prepared, "before"), prepared.suite, cases)
    after, _ = decontaminate_rows(_rows(prepared, "after"), prepared.suite, cases)
    facts = _facts(prepared)
    if config.judge_url:
        facts = replace(facts, judge=_judge(prepared, before, after))
    if config.judge_criteria:
        from medcot.pipeline.hand_labels import grade

        path = directory.path / JUDGED
        facts = replace(facts, grades=grade(prepared, before, after, path))
    report = build_report(
        before,
        after,
        prepared.suite,
        directory.as_recorded(config),
        facts,
        leaks=prepared.overlaps,
        withheld=(*prepared.withheld, *withheld),
        seeds=_seeds(prepared),
    )
    directory.write_json("report.json", report_to_json(report))
    if figures:
        drawn = write_figures(report, list(directory.rows(directory.events)), directory.path)
        report = replace(report, figures=drawn)
    directory.write_json("report.json", report_to_json(report))
    write_report_files(directory, report)
    return report


def _seeds(prepared: Prepared) -> list[SeedRows]:
    """Return the rows of each of several trainings after it."""
    directory, config = prepared.directory, prepared.config
    if config.seeds == 1:
        return []
    kept = directory.read_json("training.json").get("kept_seed")
    found: list[SeedRows] = []
    for number in range(1, config.seeds + 1):
        own = directory.of_seed(number)
        path, validated = own.evaluation("after"), find_validation(own)
        found.append(
            SeedRows(
                number=number,
                seed=own.config().seed,
                kept=number == kept,
                validation_loss=validated.kept_loss if validated else None,
                rows=rows_from_json(own.rows(path), where=str(path)),
            )
        )
    return found


def _rows(prepared: Prepared, phase: Phase) -> list[ScoredRow]:
    path = prepared.directory.evaluation(phase)
    return rows_from_json(prepared.directory.rows(path), where=str(path))


def _judge(
    prepared: Prepared, before: Sequence[ScoredRow], after: Sequence[ScoredRow]
) -> JudgeResult:
    """Ask the judge about every pair that it has not judged before."""
    directory, config = prepared.directory, prepared.config
    path = directory.path / JUDGED
    judged = judge_answers(
        before,
        after,
        prepared.suite,
        config.judge_url,
        config.judge_model,
        known={row["contest"]: row["outcome"] for row in directory.rows(path)},
        save=lambda pair, preference: directory.append(
            path, {"contest": pair, "outcome": preference}
        ),
    )
    # A kernel does not carry it: nobody compares answers by hand there.
    if find_spec("medcot.pipeline.hand_labels") is None:
        return judged
    from medcot.pipeline.hand_labels import correct

    return correct(judged, prepared, before, after)


def _facts(prepared: Prepared) -> Facts:
    """Collect what the report says about the run. Two runs with one seed have the same facts."""
    dataset, shown = prepared.dataset, prepared.directory.as_recorded(prepared.config)
    environment = prepared.directory.read_json("environment.json")
    fallbacks = tuple(FallbackFact(**one) for one in environment.get("fallbacks", []))
    return Facts(
        dataset=DatasetFacts(
            shown.dataset, dataset.revision, dataset.fingerprint, dataset.synthetic
        ),
        rows=len(prepared.rows),
        dropped=tuple(row.in_english() for row in prepared.dropped),
        steps=_steps_done(prepared),
        trainable_parameters=prepared.plan.trainable_parameters,
        total_parameters=prepared.plan.total_parameters,
        environment=EnvironmentFacts(fallbacks),
        exports=read_exports(prepared.directory),
        validation=find_validation(prepared.directory),
    )


def _steps_done(prepared: Prepared) -> int:
    """Return the steps of the training, which may have ended early."""
    directory, planned = prepared.directory, prepared.config.total_steps(len(prepared.rows))
    done = directory.read_json("training.json") if directory.has("training.json") else {}
    return done.get("steps", planned)


def find_validation(directory: RunDirectory) -> ValidationFacts | None:
    """Return the validations of the training; None without any, as in runs of older versions."""
    found = [
        row for row in directory.rows(directory.events) if row.get("validation_loss") is not None
    ]
    if not found or not directory.has("training.json"):
        return None
    training = directory.read_json("training.json")
    return ValidationFacts(
        rows=training["validation_rows"],
        kept_step=training["kept_step"],
        steps=training["steps"],
        losses=tuple(StepLoss(row["step"], row["validation_loss"]) for row in found),
        stopped_early=bool(training.get("stopped_early")),
    )
