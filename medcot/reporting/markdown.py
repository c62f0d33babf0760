"""``report.md``: a report as Markdown. Texts of models and data are escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from medcot.catalog import Message
from medcot.data.contamination import Overlap
from medcot.evaluation.suite import SetAccuracy
from medcot.reporting.schema import (
    MEASURES,
    NOT_MEDICAL_ADVICE,
    Answer,
    ChangedList,
    ChangedQuestion,
    ChangedRow,
    ChoiceEndpoint,
    Endpoint,
    FixedQuestion,
    Measure,
    Report,
)
from medcot.reporting.wording import (
    count_things,
    format_change,
    format_interval,
    format_p,
    format_percent,
    format_size,
    format_value,
)
from medcot.stats.paired import PairedDifference

LONGEST_LIST = 10
"""Rows of a list; ``report.json`` has them all."""

LONGEST_TEXT = 900
"""Characters of one answer; ``evaluation/*.jsonl`` has all of it."""

SHORT_TEXT = 200
"""Characters of a question in a table, and of the end of an unclosed thought."""

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#!~$&])")

_NAMES: dict[Measure, str] = {
    "nll": "test loss (nats per token)",
    "mcq": "multiple choice, right",
    "closed_rate": "thought closed",
    "finished_rate": "ended by itself",
    "repetition_rate": "caught in a loop",
    "language_match_rate": "in the question's language",
    "answer_tokens": "answer length (tokens)",
    "thought_tokens": "thought length (tokens)",
}


def render_markdown(report: Report) -> str:
    """Render ``report.md``."""
    parts = [
        "# Did the fine-tuning help?",
        f"**{report.verdict.sentence}**",
        f"> {NOT_MEDICAL_ADVICE}",
        *_comparison(report),
        *_cautions(report),
        *_sets(report),
        *_power(report),
        *_figures(report),
        *_fixed_question(report.fixed_question),
        *_rows("better", report.better_rows),
        *_rows("worse", report.worse_rows),
        *_changed_questions(report),
        *_judge(report),
        *_left_out("Training rows left out", report.leaks),
        *_left_out("Questions left out, as they were trained on", report.withheld),
        *_exports(report),
        *_setting(report),
    ]
    return "\n\n".join(parts) + "\n"


def _comparison(report: Report) -> Iterator[str]:
    lines = ["| | before | after | difference | 95 % interval | p | n |"]
    lines.append("| :-- | --: | --: | --: | :-: | --: | --: |")
    for measure in MEASURES:
        if paired := report.paired.of(measure):
            before, after = report.before.value(measure), report.after.value(measure)
            lines.append(_line(_NAMES[measure], measure, before, after, paired))
    yield "## Before and after"
    yield "\n".join(lines)
    yield (
        "Each difference is after minus before on the same rows with the same settings: a fall of"
        " the loss is good, a rise of right answers is good. A change is called only when both the"
        " interval leaves zero out and p is below 0.05. A lower loss means that the model has come"
        " closer to the reference texts, their manner included; whether it is right more often,"
        " only right answers show. All of it is about this one adapter: another seed may do"
        " otherwise."
    )


def _line(
    title: str,
    measure: Measure,
    before: float | None,
    after: float | None,
    paired: PairedDifference,
) -> str:
    cells = [
        title,
        format_value(measure, before),
        format_value(measure, after),
        format_change(measure, paired.difference),
        format_interval(measure, paired),
        format_p(paired.p_value),
        str(paired.n),
    ]
    return f"| {' | '.join(cells)} |"


def _cautions(report: Report) -> Iterator[str]:
    """Render the cautions as a section; nothing without any."""
    if report.cautions:
        yield "## Cautions"
        yield "\n".join(f"- {_escape_values(one)}" for one in report.cautions)


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


def _sets(report: Report) -> Iterator[str]:
    mcq, before, after = report.paired.mcq, report.before.mcq, report.after.mcq
    if not mcq or not before or not after:
        return
    lines = ["| set | before | after | difference | interval | p | n | by guessing | verdict |"]
    lines.append("| :-- | --: | --: | --: | :-: | --: | --: | --: | :-- |")
    verdicts = report.verdict.mcq_sets or {}
    for name, paired in mcq.sets.items():
        accuracies = before.sets[name].accuracy, after.sets[name].accuracy
        line = _line(escape(name), "mcq", *accuracies, paired)
        lines.append(f"{line} {format_percent(report.chance.get(name))} | {verdicts[name]} |")
    yield "## Multiple choice by set"
    yield "\n".join(lines)
    yield from _correction(mcq)
    yield _method(report, before, after)
    for name, alike in report.lm_eval_agreement.items():
        yield (
            f"lm-evaluation-harness and medcot judge the same questions of {escape(name)} alike,"
            f" right or wrong: {alike.before} of {alike.n} before and {alike.after} of"
            f" {alike.n} after. Together they are counted once."
        )


def _correction(mcq: ChoiceEndpoint) -> Iterator[str]:
    if len(mcq.sets) > 1:
        level = f"{100 * next(iter(mcq.sets.values())).level:.1f}"
        yield (
            f"{len(mcq.sets)} sets give chance {len(mcq.sets)} tries: their p-values are corrected"
            f" by Holm's method and their intervals are {level} % each, so that all hold together."
        )


def _method(report: Report, before: SetAccuracy, after: SetAccuracy) -> str:
    if report.config.mcq_method == "likelihood":
        return "Answered by likelihood: the letter that the model finds likeliest after the cue."
    said = [
        f"{side}: {mcq.unparsed} stated no clear letter, {mcq.unfinished} were cut off"
        for side, mcq in (("before", before), ("after", after))
    ]
    return f"Answered by reasoning; what cannot be read counts as wrong ({'; '.join(said)})."


def _power(report: Report) -> Iterator[str]:
    lines: list[str] = []
    for name, paired in report.paired.endpoints().items():
        unit = "test rows" if name == "nll" else "questions"
        if (least := paired.detectable) is not None:
            size = format_size(name, least)
            lines.append(
                f"- {_NAMES[name]}: with {paired.n} {unit}, a true difference of"
                f" {size} or more would be found four times out of five."
            )
        lines += _needed_rows(name, paired, unit)
    if lines:
        yield "## What this run could have shown"
        yield "\n".join(lines)


def _needed_rows(name: Measure, paired: Endpoint, unit: str) -> Iterator[str]:
    if (needed := paired.needed_rows) is not None:
        seen = format_size(name, paired.difference)
        yield (
            f"- To tell a difference like the one seen ({seen}) from chance takes about"
            f" {needed:,} {unit}: {needed - paired.n:,} more."
        )
    elif isinstance(paired, ChoiceEndpoint) and (paired.needed_for_5_points or 0) > paired.n:
        needed = paired.needed_for_5_points or 0
        yield (
            f"- To find a change of 5 points four times out of five takes about {needed:,}"
            f" {unit}, {needed - paired.n:,} more, and only if hardly more answers change"
            " sides than did here."
        )


def _figures(report: Report) -> Iterator[str]:
    if report.figures:
        yield "## Figures"
        yield from (f"![{escape(one.title)}]({one.file})" for one in report.figures)


def _fixed_question(fixed: FixedQuestion | None) -> Iterator[str]:
    """Render the fixed question with its answers, and a table of its claims."""
    if fixed is None:
        return
    yield "## The same question, before and after"
    yield f"*{escape(fixed.question)}*"
    yield _side_by_side(fixed)
    if fixed.claims.after:
        lines = ["| what the answer must say | before | after |", "| :-- | :-- | :-- |"]
        both = zip(fixed.claims.before, fixed.claims.after, strict=True)
        lines += [f"| {escape(b.claim)} | {b.finding} | {a.finding} |" for b, a in both]
        sides = (fixed.passed.before, fixed.passed.after)
        passed = ("passed" if side else "failed" for side in sides)
        yield "\n".join([*lines, f"| **all of it** | {' | '.join(passed)} |"])


def _rows(direction: str, rows: Sequence[ChangedRow]) -> Iterator[str]:
    """Render test rows whose loss changed most, each with its reference."""
    yield f"## Rows that got {direction}"
    if not rows:
        yield "None."
    for row in rows:
        yield f"### {escape(row.id)}: loss {row.nll_before:.3f} → {row.nll_after:.3f}"
        yield f"*{escape(_shorten(row.question))}*"
        yield _side_by_side(row)


def _changed_questions(report: Report) -> Iterator[str]:
    """Render the questions whose grade changed, both ways; nothing if none did."""
    changed = report.changed_questions
    if not changed.became_right.n and not changed.became_wrong.n:
        return
    yield "## Questions that changed sides"
    yield from _changed_list(changed.became_right, "right")
    yield from _changed_list(changed.became_wrong, "wrong")


def _changed_list(side: ChangedList, word: str) -> Iterator[str]:
    shown = len(side.shown)
    some = f", the first {shown} of them" if shown < side.n else ""
    yield f"{count_things('question', side.n)} became {word}{some}{':' if shown else '.'}"
    if shown:
        lines = ["| set | question | right answer | before | after |"]
        lines += ["| :-- | :-- | :-- | :-: | :-: |", *map(_changed_question, side.shown)]
        yield "\n".join(lines)


def _changed_question(row: ChangedQuestion) -> str:
    cells = [escape(row.set), escape(_shorten(row.question, SHORT_TEXT))]
    cells += [escape(_shorten(row.reference, SHORT_TEXT))]
    return f"| {' | '.join([*cells, row.before or 'none', row.after or 'none'])} |"


def _side_by_side(row: ChangedRow | FixedQuestion) -> str:
    cells = [_cell(row.reference), _answer(row.before), _answer(row.after)]
    return f"| reference | before | after |\n| :-- | :-- | :-- |\n| {' | '.join(cells)} |"


def _answer(answer: Answer | None) -> str:
    if answer is None:
        return "(scored, not answered in full)"
    cut = "" if answer.finished else " (cut off at the limit)"
    if not answer.closed:
        return f"(no answer: the thought never closed){cut} … {_cell(_tail(answer.thought))}"
    return (_cell(answer.answer) or "(empty)") + cut


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


def _judge(report: Report) -> Iterator[str]:
    if report.facts.judge:
        yield "## The judge"
        yield escape(report.facts.judge.sentence)


def _left_out(title: str, leaks: Sequence[Overlap]) -> Iterator[str]:
    """Render what training rows and evaluation sets had in common; nothing if nothing."""
    if not leaks:
        return
    lines = ["| training row | set | its row | in common |", "| :-- | :-- | :-- | :-- |"]
    for leak in leaks[:LONGEST_LIST]:
        names = (escape(name) for name in (leak.case_id, leak.set_name, leak.evaluation_id))
        share = "the question" if leak.kind == "same question" else "text"
        of = f"{share}, {100 * leak.share:.0f} % of the shorter one"
        lines.append(f"| {' | '.join(names)} | {of} |")
    yield f"## {title}: {len(leaks)}"
    yield "\n".join(lines)
    if len(leaks) > LONGEST_LIST:
        yield f"And {len(leaks) - LONGEST_LIST} more, in `report.json`."


def _exports(report: Report) -> Iterator[str]:
    """Render what the proofs of the exports found; nothing before the first export."""
    if report.facts.exports:
        yield "## Exports"
        yield "\n".join(f"- {_escape_values(one.sentence)}" for one in report.facts.exports)
        yield "Each was loaded by its own program and compared on the run's test rows (`export/`)."


def _setting(report: Report) -> Iterator[str]:
    config = report.config
    length = f"{config.steps} steps" if config.steps is not None else f"{config.epochs} epochs"
    yield "## Setting"
    yield (
        f"Model {escape(config.model)}, data {escape(config.dataset)}, {length} of"
        f" {config.batch} rows, LoRA rank {config.rank}, learning rate"
        f" {config.learning_rate:g}, seed {config.seed}. The whole setting is in"
        " `config.json`, every answer in `evaluation/`."
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
