"""``report.md``: what ``report.json`` holds, as a person reads it. Texts of models are escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from medcot.wording import (
    NOT_MEDICAL_ADVICE,
    escape,
    say_cautions,
    show_change,
    show_interval,
    show_p,
    show_percent,
    show_size,
    show_value,
)

LONGEST_TEXT = 900  # characters of one answer; the whole is in evaluation/*.jsonl

_NAMES = {
    "nll": "test loss (nats per token)",
    "mcq": "multiple choice, right",
    "closed_rate": "thought closed",
    "finished_rate": "ended by itself",
    "repetition_rate": "caught in a loop",
    "language_match_rate": "in the question's language",
    "answer_tokens": "answer length (tokens)",
    "thought_tokens": "thought length (tokens)",
}


def render_markdown(report: dict[str, Any]) -> str:
    """``report.md``."""
    parts = [
        "# Did the fine-tuning help?",
        f"**{report['verdict']['sentence']}**",
        f"> {NOT_MEDICAL_ADVICE}",
        *_comparison(report),
        *say_cautions(report),
        *_sets(report),
        *_limits(report),
        *_figures(report),
        *_fixed(report),
        *_rows(report, "better_rows", "Rows that got better"),
        *_rows(report, "worse_rows", "Rows that got worse"),
        *_judge(report),
        *_setting(report),
    ]
    return "\n\n".join(parts) + "\n"


def _comparison(report: dict[str, Any]) -> Iterator[str]:
    lines = ["| | before | after | difference | 95 % interval | p | n |"]
    lines.append("| :-- | --: | --: | --: | :-: | --: | --: |")
    for name, title in _NAMES.items():
        paired = report["paired"].get(name)
        if paired and paired["n"]:
            before, after = report["before"][name], report["after"][name]
            if name == "mcq":
                before, after = before["accuracy"], after["accuracy"]
            lines.append(_line(title, name, before, after, paired))
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


def _line(title: str, name: str, before: float, after: float, paired: dict[str, Any]) -> str:
    cells = [
        title,
        show_value(name, before),
        show_value(name, after),
        show_change(name, paired["difference"]),
        show_interval(name, paired),
        show_p(paired["p_value"]),
        str(paired["n"]),
    ]
    return f"| {' | '.join(cells)} |"


def _sets(report: dict[str, Any]) -> Iterator[str]:
    mcq = report["paired"].get("mcq")
    if not mcq:
        return
    sets = mcq["sets"]
    lines = ["| set | before | after | difference | interval | p | n | by guessing | verdict |"]
    lines.append("| :-- | --: | --: | --: | :-: | --: | --: | --: | :-- |")
    for name, paired in sets.items():
        before, after = (report[side]["mcq"]["sets"][name] for side in ("before", "after"))
        line = _line(escape(name), "mcq", before["accuracy"], after["accuracy"], paired)
        chance = report["chance"].get(name)
        guess = show_percent(chance) if chance is not None else ""
        lines.append(f"{line} {guess} | {report['verdict']['mcq_sets'][name]} |")
    yield "## Multiple choice by set"
    yield "\n".join(lines)
    if len(sets) > 1:
        level = f"{100 * next(iter(sets.values()))['level']:.1f}"
        yield (
            f"{len(sets)} sets give chance {len(sets)} tries: their p-values are corrected by"
            f" Holm's method and their intervals are {level} % each, so that all hold together."
        )
    yield _unread(report)


def _unread(report: dict[str, Any]) -> str:
    if report["config"]["mcq_method"] == "likelihood":
        return "Answered by likelihood: the letter that the model finds likeliest after the cue."
    said = [
        f"{side}: {mcq['unparsed']} stated no clear letter, {mcq['unfinished']} were cut off"
        for side in ("before", "after")
        if (mcq := report[side]["mcq"])
    ]
    return f"Answered by reasoning; what cannot be read counts as wrong ({'; '.join(said)})."


def _limits(report: dict[str, Any]) -> Iterator[str]:
    lines: list[str] = []
    for name in ("nll", "mcq"):
        paired = report["paired"].get(name)
        if not paired or not paired["n"]:
            continue
        unit = "test rows" if name == "nll" else "questions"
        if (least := paired["detectable"]) is not None:
            lines.append(
                f"- {_NAMES[name]}: with {paired['n']} {unit}, a true difference of"
                f" {show_size(name, least)} or more would be found four times out of five."
            )
        if (needed := paired["needed_rows"]) is not None:
            seen = show_size(name, paired["difference"])
            lines.append(
                f"- To tell a difference like the one seen ({seen}) from chance takes about"
                f" {needed:,} {unit}: {needed - paired['n']:,} more."
            )
    if lines:
        yield "## What this run could have shown"
        yield "\n".join(lines)


def _figures(report: dict[str, Any]) -> Iterator[str]:
    if figures := report.get("figures"):
        yield "## Figures"
        yield from (f"![{escape(one['title'])}]({one['file']})" for one in figures)


def _fixed(report: dict[str, Any]) -> Iterator[str]:
    fixed = report["fixed_question"]
    if not fixed:
        return
    yield "## The same question, before and after"
    yield f"*{escape(fixed['question'])}*"
    yield _side_by_side(fixed)
    if fixed["claims"]["after"]:
        lines = ["| what the answer must say | before | after |", "| :-- | :-- | :-- |"]
        both = zip(fixed["claims"]["before"], fixed["claims"]["after"], strict=True)
        lines += [f"| {escape(b['claim'])} | {b['finding']} | {a['finding']} |" for b, a in both]
        yield "\n".join(lines)


def _rows(report: dict[str, Any], field: str, title: str) -> Iterator[str]:
    rows: Sequence[dict[str, Any]] = report[field]
    yield f"## {title}"
    if not rows:
        yield "None."
    for row in rows:
        losses = f"{row['nll_before']:.3f} → {row['nll_after']:.3f}"
        yield f"### {escape(row['id'])}: loss {losses}"
        yield f"*{escape(_short(row['question']))}*"
        yield _side_by_side(row)


def _side_by_side(row: dict[str, Any]) -> str:
    cells = [_cell(row["reference"]), *(_reply(row[side]) for side in ("before", "after"))]
    return f"| reference | before | after |\n| :-- | :-- | :-- |\n| {' | '.join(cells)} |"


def _reply(reply: dict[str, Any] | None) -> str:
    if reply is None:
        return "(scored, not answered in full)"
    if not reply["closed"]:
        return f"(no answer: the thought never closed) … {_cell(reply['thought'][-200:])}"
    cut = "" if reply["finished"] else " (cut off at the limit)"
    return (_cell(reply["answer"]) or "(empty)") + cut


def _cell(text: str) -> str:
    plain = _short(text).replace("**", "")
    paragraphs = [escape(line) for line in plain.splitlines() if line.strip()]
    return " <br> ".join(paragraphs)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"


def _judge(report: dict[str, Any]) -> Iterator[str]:
    judged = report["facts"].get("judge")
    if judged:
        yield "## The judge"
        yield escape(judged["sentence"])


def _setting(report: dict[str, Any]) -> Iterator[str]:
    config = report["config"]
    length = f"{config['steps']} steps" if config["steps"] is not None else ""
    length = length or f"{config['epochs']} epochs"
    yield "## Setting"
    yield (
        f"Model {escape(config['model'])}, data {escape(config['dataset'])}, {length} of"
        f" {config['batch']} rows, LoRA rank {config['rank']}, learning rate"
        f" {config['learning_rate']:g}, seed {config['seed']}. The whole setting is in"
        " `config.json`, every answer in `evaluation/`."
    )
