"""What a reader of the report looks at: single rows before and after, beside their reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medcot.evaluation.interface import Examination, Row

SHOWN_ROWS = 5
Pairs = Sequence[tuple[Row, Row]]


def telling_rows(pairs: Pairs, examination: Examination) -> dict[str, list[Row]]:
    """The rows whose loss fell and rose most; those answered in full first, as they can be read."""
    cases = {case.id: case for case in examination.cases}
    rows: list[Row] = []
    for b, a in pairs:
        if b["kind"] != "case" or b["id"] not in cases:
            continue
        case = cases[b["id"]]
        rows.append(
            {
                "id": case.id,
                "question": case.question,
                "reference": case.reference or case.response,
                "nll_before": b["nll"],
                "nll_after": a["nll"],
                "difference": a["nll"] - b["nll"],
                "before": _answer(b),
                "after": _answer(a),
            }
        )
    fell = sorted((r for r in rows if r["difference"] < 0), key=lambda r: r["difference"])
    rose = sorted((r for r in rows if r["difference"] > 0), key=lambda r: -r["difference"])
    return {"better_rows": _readable_first(fell), "worse_rows": _readable_first(rose)}


def changed_questions(pairs: Pairs, examination: Examination) -> dict[str, Any]:
    """The questions that became right and those that became wrong: how many, and the first few."""
    asked = {
        (name, one.id): one for name, all_of in examination.questions.items() for one in all_of
    }
    sides: dict[str, list[Row]] = {"became_right": [], "became_wrong": []}
    for b, a in pairs:
        question = asked.get((b["set"], b["id"])) if b["kind"] == "mcq" else None
        if question is None or bool(b["correct"]) == bool(a["correct"]):
            continue
        side = "became_right" if a["correct"] else "became_wrong"
        sides[side].append(
            {
                "set": b["set"],
                "id": question.id,
                "question": question.question,
                "reference": f"{question.answer}. {question.options[question.answer]}",
                "before": b.get("choice"),
                "after": a.get("choice"),
            }
        )
    return {side: {"n": len(rows), "shown": rows[:SHOWN_ROWS]} for side, rows in sides.items()}


def fixed_question(pairs: Pairs, examination: Examination) -> dict[str, Any] | None:
    """The fixed question's answers and their claims; None where it was not asked."""
    case = examination.fixed
    pair = next(((b, a) for b, a in pairs if b["kind"] == "fixed"), None)
    if case is None or pair is None:
        return None
    return {
        "question": case.question,
        "reference": case.reference or case.response,
        "before": _answer(pair[0]),
        "after": _answer(pair[1]),
        "claims": {"before": pair[0].get("claims", []), "after": pair[1].get("claims", [])},
        "passed": {"before": pair[0]["correct"], "after": pair[1]["correct"]},
    }


def _readable_first(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["after"] is None)[:SHOWN_ROWS]


def _answer(row: Row) -> dict[str, Any] | None:
    if row["output"] is None:
        return None
    kept = ("thought", "answer", "closed", "finished", "tokens")
    return {name: row[name] for name in kept}
