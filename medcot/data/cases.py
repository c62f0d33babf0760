"""Rows into cases: every field checked, duplicated questions left out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from medcot.data.case_store import CaseList, add_to_fingerprint
from medcot.data.readers import Fault, Row, Values, describe_type
from medcot.data.text import find_flaw, normalise, printable
from medcot.records import Case, Claim, Dropped, Language

QUESTION, THOUGHT, RESPONSE = "Question", "Complex_CoT", "Response"
REQUIRED = (QUESTION, THOUGHT, RESPONSE)
"""The columns of FreedomIntelligence/medical-o1-reasoning-SFT, which others are named after."""

_HAN = re.compile("[\u4e00-\u9fff]")

LANGUAGES: tuple[Language, ...] = get_args(Language)


@dataclass(slots=True)
class Gathered:
    """What became of a source's rows: ``rows`` = cases + duplicates + rows with faults.

    Of the cases, so many have a question with Chinese characters and so many say they are Chinese.
    """

    rows: int = 0
    cases: CaseList = field(default_factory=CaseList)
    written_chinese: int = 0
    said_chinese: int = 0
    duplicates: list[Dropped] = field(default_factory=list[Dropped])
    faulty: list[Dropped] = field(default_factory=list[Dropped])
    faults: list[Fault] = field(default_factory=list[Fault])


def gather_cases(rows: Iterable[Row], language: Language) -> Gathered:
    """Check every row and leave out questions that were there before.

    ``language`` is that of rows that do not say theirs. A repeated question is no fault, whether
    or not its answer differs: the first one stays.
    """
    found = Gathered()
    by_question: dict[bytes, int] = {}
    answers = bytearray()
    ids: set[str] = set()
    for row in rows:
        found.rows += 1
        case, faults = _read_case(row, language)
        if case is not None:
            key = question_digest(case.question)
            if (earlier := by_question.get(key)) is not None:
                same = _answer_digest(case) == answers[16 * earlier : 16 * earlier + 16]
                answer = "and answer" if same else "with another answer"
                reason = f"same question as {found.cases.ids[earlier]}, {answer}"
                found.duplicates.append(Dropped(case.id, reason))
                continue
            if case.id in ids:
                got = f"{printable(case.id)!r}, which an earlier row has"
                faults = [Fault(row.where, "id", got, "an id of its own, or none")]
            else:
                by_question[key] = len(found.cases)
                ids.add(case.id)
                answers += _answer_digest(case)
                found.cases.add(case, key)
                found.written_chinese += _HAN.search(case.question) is not None
                found.said_chinese += case.language == "zh"
        if faults:
            _note_faults(found, row, faults)
    found.cases.finish()
    return found


def question_digest(question: str) -> bytes:
    """SHA-256 of the normalised question: what makes two questions the same one."""
    return hashlib.sha256(normalise(question).encode("utf-8", "surrogatepass")).digest()


def fingerprint(cases: Iterable[Case]) -> str:
    """SHA-256 over everything of the cases that a run can depend on, in their order."""
    digest = hashlib.sha256()
    for case in cases:
        add_to_fingerprint(digest, case)
    return digest.hexdigest()


def read_id(row: Row) -> tuple[str, list[Fault]]:
    """The row's own id, or ``row-N``."""
    value = row.values.get("id")
    if value is None or value == "":
        return f"row-{row.number}", []
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), []
    return read_text(row, "id"), check_text(row, "id")


def read_language(row: Row, default: Language) -> tuple[Language, list[Fault]]:
    value = row.values.get("lang")
    if value in (None, ""):
        return default, []
    if value in LANGUAGES:
        return cast("Language", value), []
    got = printable(repr(value))
    return default, [Fault(row.where, "lang", got, " or ".join(LANGUAGES))]


def read_text(row: Row, name: str) -> str:
    value = row.values.get(name)
    return value if isinstance(value, str) else ""


def check_text(row: Row, name: str, *, required: bool = True) -> list[Fault]:
    """The faults of one text field; an optional one may be missing, null or empty."""
    value = row.values.get(name)
    if isinstance(value, str) and value and (flaw := find_flaw(value)):
        return [Fault(row.where, name, *flaw)]
    if not required and value in (None, ""):
        return []
    if name not in row.values:
        columns = printable(", ".join(map(str, row.values))) or "none"
        return [Fault(row.header or row.where, name, f"only the columns {columns}", name)]
    if not isinstance(value, str):
        shown = "" if value is None else f" {printable(repr(value))[:40]}"
        return [Fault(row.where, name, describe_type(value) + shown, "text")]
    return [] if value.strip() else [Fault(row.where, name, "empty text", "text")]


def _read_case(row: Row, language: Language) -> tuple[Case | None, list[Fault]]:
    if row.fault:
        return None, [row.fault]
    reference = "reference" if row.values.get("reference") else "reference_answer"
    identity, faults = read_id(row)
    spoken, language_faults = read_language(row, language)
    claims, claim_faults = _read_claims(row)
    faults += language_faults + claim_faults
    for name in REQUIRED:
        faults += check_text(row, name)
    for name in ("specialty", "source", reference):
        faults += check_text(row, name, required=False)
    if not faults and not normalise(row.values[QUESTION]):
        faults.append(Fault(row.where, QUESTION, "nothing but punctuation", "text"))
    if faults:
        return None, faults
    return Case(
        id=identity,
        question=row.values[QUESTION],
        thought=row.values[THOUGHT],
        response=row.values[RESPONSE],
        language=spoken,
        source=read_text(row, "source"),
        specialty=read_text(row, "specialty"),
        reference=read_text(row, reference),
        claims=claims,
    ), []


def _read_claims(row: Row) -> tuple[tuple[Claim, ...], list[Fault]]:
    values = row.values.get("claims")
    if values in (None, "", []):
        return (), []
    try:
        return tuple(_read_claim(value) for value in cast("list[Values]", values)), []
    except (TypeError, KeyError, ValueError, re.error) as error:
        got = f"{describe_type(values)} ({printable(str(error))})"
        needs = "a list of {text, states, contradicts} with regular expressions"
        return (), [Fault(row.where, "claims", got, needs)]


def _read_claim(value: Any) -> Claim:
    text, states, contradicts = value["text"], value["states"], value["contradicts"]
    if not (isinstance(states, list) and isinstance(contradicts, list) and isinstance(text, str)):
        raise TypeError("text is a text, states and contradicts are lists")
    for pattern in [*states, *contradicts]:
        re.compile(pattern, re.IGNORECASE)
    if not states and not contradicts:
        raise ValueError("a claim without patterns")
    return Claim(text, tuple(states), tuple(contradicts))


def _answer_digest(case: Case) -> bytes:
    """16 bytes by which two answers are compared; the earlier one's text may be on disk by then."""
    text = f"{case.thought}\x1f{case.response}"
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def _note_faults(found: Gathered, row: Row, faults: list[Fault]) -> None:
    """A column that is missing from a header is one fault, however many rows follow."""
    reason = "; ".join(f"{fault.field}: {fault.got}" for fault in faults)
    found.faulty.append(Dropped(printable(read_id(row)[0]) or f"row-{row.number}", reason))
    known = {(f.where, f.field) for f in found.faults[:16]} if row.header else set()
    found.faults += [fault for fault in faults if (fault.where, fault.field) not in known]
