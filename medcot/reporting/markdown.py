"""``report.md``: what ``report.json`` holds, as a person reads it. Texts of models are escaped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medcot.reporting.markdown_rows import show_changed, show_fixed, show_rows
from medcot.reporting.wording import (
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

LONGEST_LIST = 10  # rows of a list; the whole is in report.json

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
        *show_fixed(report),
        *show_rows(report),
        *show_changed(report),
        *_judge(report),
        *_left_out(report),
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
    for name, alike in report["lm_eval_agreement"].items():
        yield (
            f"lm-evaluation-harness and medcot judge the same questions of {escape(name)} alike,"
            f" right or wrong: {alike['before']} of {alike['n']} before and {alike['after']} of"
            f" {alike['n']} after. Together they are counted once."
        )


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
        elif (needed := paired.get("needed_for_5_points") or 0) > paired["n"]:
            lines.append(
                f"- To find a change of 5 points four times out of five takes about {needed:,}"
                f" {unit}, {needed - paired['n']:,} more, and only if hardly more answers change"
                " sides than did here."
            )
    if lines:
        yield "## What this run could have shown"
        yield "\n".join(lines)


def _figures(report: dict[str, Any]) -> Iterator[str]:
    if figures := report.get("figures"):
        yield "## Figures"
        yield from (f"![{escape(one['title'])}]({one['file']})" for one in figures)


def _judge(report: dict[str, Any]) -> Iterator[str]:
    judged = report["facts"].get("judge")
    if judged:
        yield "## The judge"
        yield escape(judged["sentence"])


def _left_out(report: dict[str, Any]) -> Iterator[str]:
    """What training rows and evaluation sets had in common, and which of the two gave way."""
    lists = (
        ("Training rows left out", report["leaks"]),
        ("Questions left out, as they were trained on", report["withheld"]),
    )
    for title, leaks in lists:
        if not leaks:
            continue
        lines = ["| training row | set | its row | in common |", "| :-- | :-- | :-- | :-- |"]
        for leak in leaks[:LONGEST_LIST]:
            names = (escape(leak[key]) for key in ("case_id", "set_name", "evaluation_id"))
            share = "the question" if leak["kind"] == "same question" else "text"
            of = f"{share}, {100 * leak['share']:.0f} % of the shorter one"
            lines.append(f"| {' | '.join(names)} | {of} |")
        yield f"## {title}: {len(leaks)}"
        yield "\n".join(lines)
        if len(leaks) > LONGEST_LIST:
            yield f"And {len(leaks) - LONGEST_LIST} more, in `report.json`."


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
