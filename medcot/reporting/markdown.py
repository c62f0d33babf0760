"""``report.md``: a report as Markdown. Texts of models and data are escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

from medcot.catalog import Message, say
from medcot.data.contamination import Overlap
from medcot.evaluation.suite import SetAccuracy
from medcot.reporting.schema import (
    MEASURES,
    Answer,
    ChangedList,
    ChangedQuestion,
    ChangedRow,
    ChoiceEndpoint,
    FixedQuestion,
    Report,
)
from medcot.reporting.wording import (
    compare_values,
    cost_by_kind,
    count_things,
    format_percent,
    name_kind,
    seed_rows,
    state_letter_bias,
    state_power,
    state_seeds,
    state_thought,
    state_validation,
    word_opening,
    word_verdict,
)

LONGEST_LIST = 10
"""Rows of a list; ``report.json`` has them all."""

LONGEST_TEXT = 900
"""Characters of one answer; ``evaluation/*.jsonl`` has all of it."""

SHOWN_ITEMS = 5
"""Lost items of the table; ``report.json`` has them all."""

SHORT_TEXT = 200
"""Characters of a question in a table, and of the end of an unclosed thought."""

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#!~$&])")


def render_markdown(report: Report, language: str = "en") -> str:
    """Render ``report.md``; answers and questions stay in their own language."""
    parts = [
        f"# {say('report_title', language)}",
        *([f"**{opening}**"] if (opening := word_opening(report, language)) else ()),
        word_verdict(report, language),
        f"> {say('research_output', language)}",
        *_seeds(report, language),
        *_comparison(report, language),
        *_cautions(report, language),
        *_sets(report, language),
        *_cost(report, language),
        *_thought(report, language),
        *_power(report, language),
        *_validation(report, language),
        *_figures(report, language),
        *_fixed_question(report.fixed_question, language),
        *_rows("better_rows", report.better_rows, language),
        *_rows("worse_rows", report.worse_rows, language),
        *_changed_questions(report, language),
        *_judge(report, language),
        *_overlaps("report_leaks", report.leaks, language),
        *_overlaps("report_withheld", report.withheld, language),
        *_exports(report, language),
        *_setting(report, language),
    ]
    return "\n\n".join(parts) + "\n"


def _comparison(report: Report, language: str) -> Iterator[str]:
    rows = [
        [say(f"measure_{measure}", language), *compare_values(report, measure, paired, language)]
        for measure in MEASURES
        if (paired := report.paired.of(measure))
    ]
    yield f"## {say('report_comparison', language)}"
    yield render_table("heads_comparison", ":-- --: --: --: :-: --: --:", rows, language)
    yield say("report_comparison_note", language) + _scope(report, language)


def _scope(report: Report, language: str) -> str:
    """Say what the comparison is about: the one adapter, or the kept one of several."""
    code = "scope_kept" if report.seeds else "scope_one"
    return ("" if language == "zh" else " ") + say(code, language)


def _seeds(report: Report, language: str) -> Iterator[str]:
    """Render the trainings of a recipe; nothing for a single one."""
    if report.seeds is None:
        return
    yield f"## {say('report_seeds', language)}"
    yield render_table(
        "heads_seeds", "--: --: --: :-: :-- --: :-: :-- :--", seed_rows(report, language), language
    )
    lines = [one.text(language) for one in state_seeds(report, language)]
    yield ("" if language == "zh" else " ").join([*lines, say("seeds_note", language)])


def render_table(heads: str, alignment: str, rows: Iterable[Sequence[str]], language: str) -> str:
    """Render a table; the catalog has the first line's cells under the code ``heads``."""
    lines = [f"| {say(heads, language)} |", f"| {' | '.join(alignment.split())} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _cautions(report: Report, language: str) -> Iterator[str]:
    """Render the cautions as a section; nothing without any."""
    if report.cautions:
        yield f"## {say('report_cautions', language)}"
        yield "\n".join(f"- {_escape_values(one).text(language)}" for one in report.cautions)


def _escape_values(message: Message) -> Message:
    """Escape the values that come from data; the catalog's own text is Markdown."""
    return Message(
        message.code,
        {
            name: escape(value)
            if isinstance(value, str)
            else _escape_values(value)
            if isinstance(value, Message)
            else value
            for name, value in message.values.items()
        },
    )


def _sets(report: Report, language: str) -> Iterator[str]:
    mcq, before, after = report.paired.mcq, report.before.mcq, report.after.mcq
    if not mcq or not before or not after:
        return
    rows: list[list[str]] = []
    for name, paired in mcq.sets.items():
        found = (report.verdict.mcq_sets or {})[name].replace(" ", "_")
        values = compare_values(report, "mcq", paired, language, of_set=name)
        guess = format_percent(report.chance.get(name))
        rows.append([escape(name), *values, guess, say(f"called_{found}", language)])
    yield f"## {say('report_sets', language)}"
    yield render_table("heads_sets", ":-- --: --: --: :-: --: --: --: :--", rows, language)
    yield from _correction(mcq, language)
    yield _method(report, before, after, language)
    yield from state_letter_bias(report, language)
    for name, alike in report.lm_eval_agreement.items():
        counts = {"before": alike.before, "after": alike.after, "n": alike.n}
        yield say("report_agreement", language, set=escape(name), **counts)


def _correction(mcq: ChoiceEndpoint, language: str) -> Iterator[str]:
    if len(mcq.sets) > 1:
        level = f"{100 * next(iter(mcq.sets.values())).level:.1f}"
        yield say("report_correction", language, sets=len(mcq.sets), level=level)


def _method(report: Report, before: SetAccuracy, after: SetAccuracy, language: str) -> str:
    if report.config.mcq_method == "likelihood":
        return say("report_likelihood", language)
    return say(
        "report_reasoning",
        language,
        unparsed_before=before.unparsed,
        unread_before=format_percent(before.unread),
        unfinished_before=before.unfinished,
        unparsed_after=after.unparsed,
        unread_after=format_percent(after.unread),
        unfinished_after=after.unfinished,
    )


def _cost(report: Report, language: str) -> Iterator[str]:
    """Render what the training cost, by kind of item; nothing without general items."""
    items, before, after = report.paired.abilities, report.before.abilities, report.after.abilities
    if not items or not before or not after:
        return
    yield f"## {say('report_cost', language)}"
    rows = [[escape(kind), *cells] for kind, *cells in cost_by_kind(report, language)]
    yield render_table("heads_cost", ":-- --: --: --: :-: --: --: :--", rows, language)
    yield from _correction(items, language)
    cut = {"before": before.unfinished, "after": after.unfinished}
    yield say("report_cost_note", language, **cut)
    if lost := report.lost_abilities:
        yield say("report_lost", language, n=len(lost))
        shown = [
            [
                escape(name_kind(one.kind, language)),
                *(
                    escape(_shorten(text, SHORT_TEXT)) or say("answer_empty", language)
                    for text in (one.prompt, one.before, one.after)
                ),
            ]
            for one in lost[:SHOWN_ITEMS]
        ]
        yield render_table("heads_lost", ":-- :-- :-- :--", shown, language)


def _thought(report: Report, language: str) -> Iterator[str]:
    """Render whether the thought is used; nothing if no row tests it."""
    if lines := list(state_thought(report, language)):
        yield f"## {say('report_thought', language)}"
        yield from lines
        yield say("report_thought_note", language)


def _power(report: Report, language: str) -> Iterator[str]:
    if lines := [f"- {one.text(language)}" for one in state_power(report, language)]:
        yield f"## {say('report_power', language)}"
        yield "\n".join(lines)


def _validation(report: Report, language: str) -> Iterator[str]:
    if said := [one.text(language) for one in state_validation(report)]:
        yield f"## {say('report_validation', language)}"
        yield ("" if language == "zh" else " ").join([*said, say("validation_note", language)])


def _figures(report: Report, language: str) -> Iterator[str]:
    if report.figures:
        yield f"## {say('report_figures', language)}"
        for one in report.figures:
            name = PurePath(one.file).stem
            title = one.title if language == "en" else say(f"figure_{name}", language)
            yield f"![{escape(title)}]({one.file})"


def _fixed_question(fixed: FixedQuestion | None, language: str) -> Iterator[str]:
    """Render the fixed question with its answers, and a table of its claims."""
    if fixed is None:
        return
    yield f"## {say('report_fixed', language)}"
    yield f"*{escape(fixed.question)}*"
    yield _side_by_side(fixed, language)
    if fixed.claims.after:
        rows = [
            [
                escape(before.claim),
                *(say(f"claim_{one.finding}", language) for one in (before, after)),
            ]
            for before, after in zip(fixed.claims.before, fixed.claims.after, strict=True)
        ]
        sides = (fixed.passed.before, fixed.passed.after)
        passed = (say("claims_passed" if side else "claims_failed", language) for side in sides)
        rows.append([f"**{say('all_claims', language)}**", *passed])
        yield render_table("heads_claims", ":-- :-- :--", rows, language)


def _rows(code: str, rows: Sequence[ChangedRow], language: str) -> Iterator[str]:
    """Render test rows whose loss changed most, each with its reference."""
    yield f"## {say(code, language)}"
    if not rows:
        yield say("none", language)
    for row in rows:
        losses = {"before": f"{row.nll_before:.3f}", "after": f"{row.nll_after:.3f}"}
        yield f"### {say('row_loss', language, id=escape(row.id), **losses)}"
        yield f"*{escape(_shorten(row.question))}*"
        yield _side_by_side(row, language)


def _changed_questions(report: Report, language: str) -> Iterator[str]:
    """Render the questions whose grade changed, both ways; nothing if none did."""
    changed = report.changed_questions
    if not changed.became_right.n and not changed.became_wrong.n:
        return
    yield f"## {say('report_changed', language)}"
    yield from _changed_list("became_right", changed.became_right, language)
    yield from _changed_list("became_wrong", changed.became_wrong, language)


def _changed_list(code: str, side: ChangedList, language: str) -> Iterator[str]:
    count = len(side.shown)
    some = "listed_none" if not count else "listed_all" if count == side.n else "listed_first"
    questions = count_things("question", side.n)
    yield say(code, language, questions=questions, listed=Message(some, {"n": count}))
    if count:
        rows = [_changed_question(row, language) for row in side.shown]
        yield render_table("heads_changed", ":-- :-- :-- :-: :-:", rows, language)


def _changed_question(row: ChangedQuestion, language: str) -> list[str]:
    question, reference = (
        escape(_shorten(one, SHORT_TEXT)) for one in (row.question, row.reference)
    )
    letters = (letter or say("no_letter", language) for letter in (row.before, row.after))
    return [escape(row.set), question, reference, *letters]


def _side_by_side(row: ChangedRow | FixedQuestion, language: str) -> str:
    cells = [_cell(row.reference), _answer(row.before, language), _answer(row.after, language)]
    return render_table("heads_sides", ":-- :-- :--", [cells], language)


def _answer(answer: Answer | None, language: str) -> str:
    if answer is None:
        return say("answer_unscored", language)
    cut = "" if answer.finished else f" {say('answer_cut', language)}"
    if not answer.closed:
        return f"{say('answer_not_closed', language)}{cut} … {_cell(_tail(answer.thought))}"
    return (_cell(answer.answer) or say("answer_empty", language)) + cut


def _tail(text: str) -> str:
    """Return the last words, beginning with a whole one."""
    end = text[-SHORT_TEXT:]
    return end if len(text) <= SHORT_TEXT else end[end.find(" ") + 1 :]


def _cell(text: str) -> str:
    plain = _shorten(text).replace("**", "")
    paragraphs = [escape(line) for line in plain.splitlines() if line.strip()]
    return " <br> ".join(paragraphs)


def _shorten(text: str, longest: int = LONGEST_TEXT) -> str:
    return text if len(text) <= longest else f"{text[:longest]} …"


def _judge(report: Report, language: str) -> Iterator[str]:
    judge, grades = report.facts.judge, report.facts.grades
    if judge or grades:
        yield f"## {say('report_judge', language)}"
    if judge:
        yield escape(judge.text(language))
    if grades:
        yield escape(" ".join(one.text(language) for one in grades.messages))


def _overlaps(code: str, overlaps: Sequence[Overlap], language: str) -> Iterator[str]:
    """Render what training rows and evaluation sets had in common; nothing if nothing."""
    if not overlaps:
        return
    rows: list[list[str]] = []
    for one in overlaps[:LONGEST_LIST]:
        names = (escape(name) for name in (one.case_id, one.set_name, one.evaluation_id))
        kind = "overlap_question" if one.kind == "same question" else "overlap_text"
        rows.append([*names, say(kind, language, share=100 * one.share)])
    yield f"## {say(code, language, n=len(overlaps))}"
    yield render_table("heads_overlaps", ":-- :-- :-- :--", rows, language)
    if len(overlaps) > LONGEST_LIST:
        yield say("report_more", language, n=len(overlaps) - LONGEST_LIST)


def _exports(report: Report, language: str) -> Iterator[str]:
    """Render what the proofs of the exports found; nothing before the first export."""
    if report.facts.exports:
        yield f"## {say('report_exports', language)}"
        found = (_escape_values(one.sentence).text(language) for one in report.facts.exports)
        yield "\n".join(f"- {sentence}" for sentence in found)
        yield say("report_exports_note", language)


def _setting(report: Report, language: str) -> Iterator[str]:
    config = report.config
    if config.steps is not None:
        length = Message("length_steps", {"n": config.steps})
    else:
        length = Message("length_epochs", {"n": config.epochs or 0})
    yield f"## {say('setting', language)}"
    yield say(
        "report_setting",
        language,
        model=escape(config.model),
        data=escape(config.dataset),
        length=length,
        batch=config.batch,
        rank=config.rank,
        learning_rate=config.learning_rate,
        seed=config.seed,
    )


def escape(text: str) -> str:
    """Escape ``text`` so that Markdown and a terminal show it as it is, on one line.

    No link, image, tag or control sequence comes through.
    """
    printable = "".join(sign if sign.isprintable() else " " for sign in text)
    safe = _SPECIAL.sub(r"\\\1", " ".join(printable.split()))
    return re.sub(r"(?i)\b(https?|ftp)(:)|\b(www)(\.)", _unlink, safe)


def _unlink(found: re.Match[str]) -> str:
    return f"{found[1]}\\{found[2]}" if found[1] else f"{found[3]}\\{found[4]}"
