"""The report as a page shows it: the verdict, the pairs, the rows that got worse and better."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from medcot.catalog import Message, say
from medcot.errors import InputError
from medcot.notebook.views.answers import compare_replies, disclaimer, show_claims
from medcot.notebook.views.charts import (
    draw_accuracy,
    draw_differences,
    draw_loss,
    draw_losses,
    draw_seeds,
)
from medcot.notebook.views.comparison import show_paired
from medcot.notebook.views.markup import (
    callout,
    card,
    details,
    folds,
    items,
    join,
    paragraph,
    paragraphs,
    prose,
    small,
    table,
    text,
)
from medcot.reporting.schema import MEASURES, ChangedRow, Report
from medcot.reporting.storage import read_report
from medcot.reporting.wording import (
    compare_values,
    cost_by_kind,
    format_percent,
    seed_rows,
    state_letter_bias,
    state_power,
    state_thought,
)
from medcot.runs.history import RunRecord, differing_fields

_log = logging.getLogger(__name__)
_KINDS = {"improved": "good", "worse": "bad", "no evidence": "note"}


def report_to_show(run: RunRecord) -> Report | None:
    """Return a run's report; None without one, or if this version cannot read it."""
    try:
        return read_report(run.path)
    except InputError as error:
        _log.warning("%s", error)
        return None


def show_outcome(report: Report, run: RunRecord, language: str) -> str:
    """Show a run at a glance: the same question before and after, and the verdict."""
    fixed = report.fixed_question
    parts: list[str] = []
    more: list[str] = []
    if fixed:
        parts.append(card(say("question", language), paragraphs(fixed.question)))
        parts.append(compare_replies(fixed.before, fixed.after, language))
        reference = prose(fixed.reference)
        more.append(details(say("reference", language), reference))
        if fixed.claims.after:
            claims = show_claims(fixed.claims, language)
            more.append(details(say("claim", language), claims))
    parts.append(show_verdict(report, language))
    if biased := list(state_letter_bias(report, language)):
        more.append(details(say("favourite_letter", language), join(*map(paragraph, biased))))
    if run.events:
        test = {"before": report.before.nll, "after": report.after.nll}
        known = {phase: loss for phase, loss in test.items() if loss is not None}
        curve = draw_loss(run.events, language, test=known)
        more.append(details(say("loss_of_run", language), curve))
    return join(*parts, folds(*more), disclaimer(language))


def show_verdict(report: Report, language: str) -> str:
    """Show the verdict by test loss, by right answers and by what the training cost, if asked."""
    verdict, messages = report.verdict, report.verdict.messages
    parts = [_verdict("nll", verdict.nll, _word(messages.nll, language), language)]
    if verdict.mcq:
        sentences = _word(messages.mcq, language)
        if chance := list(report.chance.values()):
            guess = format_percent(sum(chance) / len(chance))
            sentences += f" {say('choice_guess', language, guess=guess)}"
        parts.append(_verdict("mcq", verdict.mcq, sentences, language))
    if verdict.abilities:
        sentences = _word(messages.abilities, language)
        parts.append(_verdict("abilities", verdict.abilities, sentences, language))
        heads = say("heads_cost", language).split(" | ")
        shown = table(
            heads, [[text(cell) for cell in row] for row in cost_by_kind(report, language)]
        )
        parts.append(details(say("report_cost", language), shown))
    if used := list(state_thought(report, language)):
        parts.append(details(say("report_thought", language), items(used)))
    return join(*parts)


def _verdict(name: str, verdict: str, sentence: str, language: str) -> str:
    key = verdict.replace(" ", "_")
    measure, found = say(f"measure_{name}", language), say(f"verdict_{key}", language)
    title = say("found", language, measure=measure, found=found)
    return callout(_KINDS[verdict], title, paragraph(sentence))


def _word(messages: Sequence[Message], language: str) -> str:
    return " ".join(one.text(language) for one in messages)


def show_comparison(report: Report, language: str) -> str:
    """Before, after, their difference with its interval and p-value, measure by measure."""
    chosen: list[Sequence[str]] = []
    others: list[Sequence[str]] = []
    for name in MEASURES:
        paired = report.paired.of(name)
        if paired is None:
            continue
        cells = compare_values(report, name, paired, language)
        numbers = (f'<span class="mc-number">{text(cell)}</span>' for cell in cells)
        row = (text(_begin(say(f"measure_{name}", language))), *numbers)
        (chosen if name in report.paired.endpoints() else others).append(row)
    keys = ("measure", "before", "after", "difference", "interval", "p_value", "n")
    # Backticks are Markdown's, in which the report words the same cautions.
    cautions = [one.text(language).replace("`", "") for one in report.cautions]
    heads = [say(key, language) for key in keys]
    scope = "scope_kept" if report.seeds else "scope_one"
    note = small(say("comparison_note", language))
    rest = details(say("other_measures", language, n=len(others)), table(heads, others) + note)
    warned = details(say("cautions", language, n=len(cautions)), items(cautions))
    return join(
        table(heads, chosen) if chosen else "",
        small(say(scope, language)),
        show_seeds(report, language),
        folds(rest if others else note, warned if cautions else ""),
    )


def show_details(report: Report, language: str) -> str:
    """What the comparison rests on: figures, power, and the rows that changed most."""
    figures = {
        "pairs_by_row": draw_differences(report, language),
        "by_question_set": draw_accuracy(report, language),
    }
    shown = [details(say(key, language), one) for key, one in figures.items() if one]
    lines = (paragraph(_begin(one.text(language))) for one in state_power(report, language))
    shown.append(details(say("report_power", language), join(*lines)))
    return join(folds(*shown, *_changed_rows(report, language)), disclaimer(language))


def _begin(words: str) -> str:
    """Capitalise the first letter."""
    return words[:1].upper() + words[1:]


def show_seeds(report: Report, language: str) -> str:
    """Show several trainings of one recipe: a dot for each, and their table."""
    if report.seeds is None:
        return ""
    heads = say("heads_seeds", language).split(" | ")
    rows = [[text(cell) for cell in row] for row in seed_rows(report, language)]
    note = paragraph(say("seeds_note", language))
    listed = details(say("report_seeds", language), join(table(heads, rows), note))
    return join(draw_seeds(report, language), listed)


def _changed_rows(report: Report, language: str) -> Iterator[str]:
    """The rows that got worse, as plainly as those that got better."""
    for key, rows in (("worse_rows", report.worse_rows), ("better_rows", report.better_rows)):
        shown = "".join(_row(row, language) for row in rows) or paragraph(say("none", language))
        yield details(say(key, language), shown)


def _row(row: ChangedRow, language: str) -> str:
    title = say(
        "row_loss",
        language,
        id=row.id,
        before=f"{row.nll_before:.3f}",
        after=f"{row.nll_after:.3f}",
    )
    body = [card(say("question", language), paragraphs(row.question))]
    if row.before is None:
        body.append(small(say("not_answered", language)))
    else:
        body.append(compare_replies(row.before, row.after, language))
    body.append(card(say("reference", language), prose(row.reference), "mc-reference"))
    return details(title, "".join(body))


def show_runs(runs: Sequence[RunRecord], language: str) -> str:
    """Runs as a table, each with its verdict."""
    rows = [
        (
            f"<code>{text(run.name)}</code>",
            text(say(f"stage_{run.stage}", language)),
            f"{run.config.rank:,}",
            f"{len(run.events):,}",
            _losses(report),
            text(_short_verdict(report, language)),
        )
        for run, report in ((run, report_to_show(run)) for run in runs)
    ]
    keys = ("run", "stage", "rank", "steps", "test_loss", "verdict")
    return table([say(key, language) for key in keys], rows)


def compare_runs(one: RunRecord, other: RunRecord, language: str) -> str:
    """Two runs: their curves, their settings that differ, their results, and their paired rows."""
    curves = draw_losses({run.name: run.events for run in (one, other)}, language)
    changed = [
        (f"<code>{text(name)}</code>", text(mine), text(theirs))
        for name, mine, theirs in differing_fields(one, other)
    ]
    headers = (say("setting", language), one.name, other.name)
    settings = table(headers, changed) if changed else paragraph(say("same_settings", language))
    listed = show_runs((one, other), language)
    return join(curves, settings, listed, show_paired(one, other, language))


def _losses(report: Report | None) -> str:
    if report is None or report.before.nll is None or report.after.nll is None:
        return ""
    return f"{report.before.nll:.3f} → {report.after.nll:.3f}"


def _short_verdict(report: Report | None, language: str) -> str:
    if report is None:
        return ""
    key = report.verdict.nll.replace(" ", "_")
    return say(f"verdict_{key}", language)
