"""The part of ``report.md`` that shows single answers. Texts of models and data are escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from medcot.reporting.wording import count, escape

LONGEST_TEXT = 900  # characters of one answer; the whole is in evaluation/*.jsonl
SHORT_TEXT = 200


def show_fixed(report: dict[str, Any]) -> Iterator[str]:
    """The fixed question with its answers, and a table of its claims."""
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
        passed = (("passed" if fixed["passed"][side] else "failed") for side in ("before", "after"))
        yield "\n".join([*lines, f"| **all of it** | {' | '.join(passed)} |"])


def show_rows(report: dict[str, Any]) -> Iterator[str]:
    """Test rows whose loss fell and rose most, beside their reference."""
    for field, title in (("better_rows", "better"), ("worse_rows", "worse")):
        rows: Sequence[dict[str, Any]] = report[field]
        yield f"## Rows that got {title}"
        if not rows:
            yield "None."
        for row in rows:
            losses = f"{row['nll_before']:.3f} → {row['nll_after']:.3f}"
            yield f"### {escape(row['id'])}: loss {losses}"
            yield f"*{escape(_short(row['question']))}*"
            yield _side_by_side(row)


def show_changed(report: dict[str, Any]) -> Iterator[str]:
    """Questions whose answer changed sides, both ways; nothing where none did."""
    changed = report["changed_questions"]
    if not any(side["n"] for side in changed.values()):
        return
    yield "## Questions that changed sides"
    for field, word in (("became_right", "right"), ("became_wrong", "wrong")):
        side = changed[field]
        shown = len(side["shown"])
        some = f", the first {shown} of them" if shown < side["n"] else ""
        yield f"{count(side['n'], 'question')} became {word}{some}{':' if shown else '.'}"
        if shown:
            lines = ["| set | question | right answer | before | after |"]
            lines += ["| :-- | :-- | :-- | :-: | :-: |", *map(_changed, side["shown"])]
            yield "\n".join(lines)


def _changed(row: dict[str, Any]) -> str:
    cells = [escape(row["set"]), escape(_short(row["question"], SHORT_TEXT))]
    cells += [escape(_short(row["reference"], SHORT_TEXT))]
    return f"| {' | '.join([*cells, row['before'] or 'none', row['after'] or 'none'])} |"


def _side_by_side(row: dict[str, Any]) -> str:
    cells = [_cell(row["reference"]), *(_reply(row[side]) for side in ("before", "after"))]
    return f"| reference | before | after |\n| :-- | :-- | :-- |\n| {' | '.join(cells)} |"


def _reply(reply: dict[str, Any] | None) -> str:
    if reply is None:
        return "(scored, not answered in full)"
    cut = "" if reply["finished"] else " (cut off at the limit)"
    if not reply["closed"]:
        return f"(no answer: the thought never closed){cut} … {_cell(_tail(reply['thought']))}"
    return (_cell(reply["answer"]) or "(empty)") + cut


def _tail(text: str) -> str:
    """The last words, from the beginning of one on."""
    end = text[-SHORT_TEXT:]
    return end if len(text) <= SHORT_TEXT else end[end.find(" ") + 1 :]


def _cell(text: str) -> str:
    plain = _short(text).replace("**", "")
    paragraphs = [escape(line) for line in plain.splitlines() if line.strip()]
    return " <br> ".join(paragraphs)


def _short(text: str, longest: int = LONGEST_TEXT) -> str:
    return text if len(text) <= longest else f"{text[:longest]} …"
