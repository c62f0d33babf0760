"""Turns rows into cases: checks every field and leaves repeated questions out."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast, get_args

from medcot.catalog import Message
from medcot.data.case_list import CaseList, hold_cases
from medcot.data.layouts import ONLY_COLUMNS, QUESTION, RESPONSE, THOUGHT
from medcot.data.patterns import check_pattern
from medcot.data.readers import Fault, SourceRow, Values, describe_type
from medcot.data.text import HAN, find_flaw, normalise, printable
from medcot.errors import InputError, one_line
from medcot.records import Case, Claim, Dropped, Language

LONGEST_TEXT = 1_000_000
"""Characters of a text; the longest row that can be trained on has some 131,072 tokens."""

MOST_FAULTY = 1_000_000
"""Rows with faults that are counted before a source is given up; fewer if no row is valid."""

REQUIRED = (QUESTION, THOUGHT, RESPONSE)
"""The columns of FreedomIntelligence/medical-o1-reasoning-SFT, which others are named after."""

_HAN = re.compile(f"[{HAN}]")

LANGUAGES: tuple[Language, ...] = get_args(Language)


@dataclass(slots=True)
class ValidatedCases:
    """The outcome of checking a source's rows: ``rows`` = cases + duplicates + rows with faults.

    ``written_chinese`` and ``labelled_chinese`` count the cases whose question has Chinese
    characters, and those whose language is Chinese. ``thinks`` tells whether they have thoughts,
    ``layout`` how the rows were read.
    """

    rows: int = 0
    cases: CaseList = field(default_factory=CaseList)
    written_chinese: int = 0
    labelled_chinese: int = 0
    duplicates: list[Dropped] = field(default_factory=list[Dropped])
    faulty: list[Dropped] = field(default_factory=list[Dropped])
    faults: list[Fault] = field(default_factory=list[Fault])
    thinks: bool = True
    layout: str = ""


def validate_rows(rows: Iterable[SourceRow], language: Language) -> ValidatedCases:
    """Check every row and leave out questions that an earlier row has.

    ``language`` is that of rows that name none. A repeated question is no fault, whether or not its
    answer differs: the first one stays.
    """
    validation = _Validation(language)
    cases = hold_cases(validation.check(rows))
    found = validation.found
    found.cases = CaseList(
        cases, validation.ids, validation.unit_hashes, validation.digest.hexdigest()
    )
    return found


class _Validation:
    """One pass over a source's rows, with what is remembered of the earlier ones."""

    def __init__(self, language: Language) -> None:
        self.language: Language = language
        self.found = ValidatedCases()
        self.ids: list[str] = []
        self.unit_hashes = array("d")
        self.digest = hashlib.sha256()
        self._taken: set[str] = set()
        self._by_question: dict[bytes, int] = {}
        self._answers = bytearray()

    def check(self, rows: Iterable[SourceRow]) -> Iterator[Case]:
        """Yield the valid, distinct cases and count the others."""
        for row in rows:
            self.found.rows += 1
            case, faults = _read_case(row, self.language)
            if case is not None:
                hashes = _hash_case(case)
                if self._is_duplicate(case, hashes):
                    continue
                if case.id not in self._taken:
                    self._remember(case, hashes)
                    yield case
                    continue
                got = f"{printable(case.id)!r}, which an earlier row has"
                faults = [Fault(row.where, "id", got, "an id of its own, or none")]
            _note_faults(self.found, row, faults)
            most = MOST_FAULTY if self.ids else MOST_FAULTY // 20
            if len(self.found.faulty) > most:
                got = f"found over {most:,} rows that cannot be read"
                raise InputError(row.where, got, "expected one question and its answer a row")

    def _is_duplicate(self, case: Case, hashes: _Hashes) -> bool:
        """Tell whether an earlier row asks the same, and note it.

        After another system prompt it does if its answer is the same, too.
        """
        known = self._by_question
        same = False
        if (earlier := known.get(hashes.exact)) is not None:
            same = self._answers_alike(case, earlier)
        else:
            others = (known.get(one) for one in (hashes.question, hashes.any_system))
            earlier = next((n for n in others if n is not None), None)
            same = earlier is not None and self._answers_alike(case, earlier)
            earlier = earlier if same else None
        if earlier is None:
            return False
        code = "dropped_duplicate" if same else "dropped_contradiction"
        reason = Message(code, {"other": self.ids[earlier]})
        self.found.duplicates.append(Dropped(case.id, reason))
        return True

    def _answers_alike(self, case: Case, earlier: int) -> bool:
        return _hash_answer(case) == bytes(self._answers[16 * earlier : 16 * earlier + 16])

    def _remember(self, case: Case, hashes: _Hashes) -> None:
        self._by_question[hashes.exact] = len(self.ids)
        if hashes.exact != hashes.question:
            self._by_question.setdefault(hashes.any_system, len(self.ids))
        self._taken.add(case.id)
        self._answers += _hash_answer(case)
        self.ids.append(case.id)
        self.unit_hashes.append(unit_hash(case) if case.turns else _to_unit(hashes.exact))
        _add_to_fingerprint(self.digest, case)
        self.found.written_chinese += _HAN.search(case.question) is not None
        self.found.labelled_chinese += case.language == "zh"


def hash_question(question: str) -> bytes:
    """Return the SHA-256 of the normalised question; equal for questions that count as the same."""
    return hashlib.sha256(normalise(question).encode("utf-8", "surrogatepass")).digest()


def unit_hash(case: Case | str) -> float:
    """Return a question's hash as a number in [0, 1): the first 8 bytes of :func:`hash_question`.

    It alone decides which part of the split the question falls to. Of a conversation it is the
    first question's, so that all its turns fall to the same part.
    """
    if isinstance(case, str):
        return _to_unit(hash_question(case))
    asked = (turn.content for turn in case.turns if turn.role == "user")
    return _to_unit(hash_question(next(asked, case.question)))


def fingerprint_cases(cases: Iterable[Case]) -> str:
    """Return the SHA-256 of everything of the cases that a run can depend on, in their order."""
    digest = hashlib.sha256()
    for case in cases:
        _add_to_fingerprint(digest, case)
    return digest.hexdigest()


def read_id(row: SourceRow) -> tuple[str, list[Fault]]:
    """Return the row's own id, or ``row-N``, and what is wrong with it."""
    value = row.values.get("id")
    if value is None or value == "":
        return f"row-{row.number}", []
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), []
    return read_text(row, "id"), check_text(row, "id")


def read_language(row: SourceRow, default: Language) -> tuple[Language, list[Fault]]:
    """Return the row's own language, or ``default``, and what is wrong with it."""
    value = row.values.get("lang")
    if value in (None, ""):
        return default, []
    if value in LANGUAGES:
        return value, []
    got = printable(repr(value))
    return default, [Fault(row.where, "lang", got, " or ".join(LANGUAGES))]


def read_text(row: SourceRow, name: str) -> str:
    """Return the row's text field ``name``, or "" where it has none."""
    value = row.values.get(name)
    return value if isinstance(value, str) else ""


def check_text(row: SourceRow, name: str, *, required: bool = True) -> list[Fault]:
    """Return the faults of one text field; an optional one may be missing, null or empty."""
    value, place = row.values.get(name), row.shown.get(name, name)
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        got = f"text of {len(value):,} characters"
        return [Fault(row.where, place, got, f"at most {LONGEST_TEXT:,}")]
    if isinstance(value, str) and value and (flaw := find_flaw(value)):
        return [Fault(row.where, place, *flaw)]
    if not required and value in (None, ""):
        return []
    if name not in row.values:
        columns = one_line(printable(", ".join(map(str, row.values)))) or "none"
        return [Fault(row.header or row.where, place, f"{ONLY_COLUMNS} {columns}", name)]
    if not isinstance(value, str):
        shown = "" if value is None else f" {printable(repr(value))[:40]}"
        return [Fault(row.where, place, describe_type(value) + shown, "text")]
    return [] if value.strip() else [Fault(row.where, place, "empty text", "text")]


def _read_case(row: SourceRow, language: Language) -> tuple[Case | None, list[Fault]]:
    if row.fault:
        return None, [row.fault]
    reference = "reference" if row.values.get("reference") else "reference_answer"
    identity, faults = read_id(row)
    spoken, language_faults = read_language(row, language)
    claims, claim_faults = _read_claims(row)
    faults += language_faults + claim_faults
    if missing := [name for name in REQUIRED if name not in row.values]:
        faults.append(_report_missing_columns(row, missing))
    for name in REQUIRED:
        needed = row.thinks or name != THOUGHT
        faults += check_text(row, name, required=needed) if name in row.values else []
    faults += _check_turns(row)
    for name in ("specialty", "source", reference):
        faults += check_text(row, name, required=False)
    if not faults and not normalise(row.values[QUESTION]):
        place = row.shown.get(QUESTION, QUESTION)
        faults.append(Fault(row.where, place, "nothing but punctuation", "text"))
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
        turns=row.turns,
    ), []


def _check_turns(row: SourceRow) -> list[Fault]:
    """Return the first flaw of a system prompt or an earlier turn."""
    for turn in row.turns:
        size = len(turn.content)
        if size > LONGEST_TEXT:
            got, needs = f"a turn of {size:,} characters", f"at most {LONGEST_TEXT:,}"
            return [Fault(row.where, f"{turn.role} turn", got, needs)]
        if flaw := find_flaw(turn.content):
            return [Fault(row.where, f"{turn.role} turn", *flaw)]
    return []


def _report_missing_columns(row: SourceRow, missing: list[str]) -> Fault:
    """Return one fault for all columns that a row lacks, and say how to name others."""
    columns = [str(name) for name in row.values]
    got = f"{ONLY_COLUMNS} {one_line(printable(', '.join(columns))) or 'none'}"
    needs = f"{', '.join(missing)} (other names: --columns question=NAME,answer=NAME)"
    return Fault(row.header or row.where, missing[0], got, needs)


def _read_claims(row: SourceRow) -> tuple[tuple[Claim, ...], list[Fault]]:
    values = row.values.get("claims")
    if values in (None, "", []):
        return (), []
    try:
        return tuple(_read_claim(value) for value in cast("list[Values]", values)), []
    except (TypeError, KeyError, ValueError) as error:
        got = f"{describe_type(values)} ({one_line(printable(str(error)), 120)})"
        needs = "a list of {text, states, contradicts} with regular expressions"
        return (), [Fault(row.where, "claims", got, needs)]


def _read_claim(value: Any) -> Claim:
    text, states, contradicts = value["text"], value["states"], value["contradicts"]
    if not (isinstance(states, list) and isinstance(contradicts, list) and isinstance(text, str)):
        raise TypeError("text is a text, states and contradicts are lists")
    patterns = tuple(cast("list[str]", states)), tuple(cast("list[str]", contradicts))
    for pattern in (*patterns[0], *patterns[1]):
        if not isinstance(cast("Any", pattern), str):
            raise TypeError("patterns are texts")
        check_pattern(pattern)
    if not any(patterns):
        raise ValueError("a claim without patterns")
    return Claim(text, *patterns)


class _Hashes(NamedTuple):
    """Hashes of what a case asks: with its system prompt, without, and for any system prompt."""

    exact: bytes
    question: bytes
    any_system: bytes


def _hash_case(case: Case) -> _Hashes:
    """Hash all that is asked and answered up to the question."""
    system = [turn.content for turn in case.turns if turn.role == "system"]
    said = [turn.content for turn in case.turns if turn.role != "system"]
    plain = hash_question("\n".join([*said, case.question]) if said else case.question)
    exact = plain + hash_question("\n".join(system)) if system else plain
    return _Hashes(exact, plain, b"system" + plain)


def _to_unit(digest: bytes) -> float:
    return int.from_bytes(digest[:8], "big") / 2**64


def _add_to_fingerprint(digest: Any, case: Case) -> None:
    parts = (case.id, case.language, case.question, case.thought, case.response)
    if case.turns:
        digest.update(repr(case.turns).encode())
    digest.update("\x1f".join((*parts, case.reference, repr(case.claims), "\x1e")).encode())


def _hash_answer(case: Case) -> bytes:
    """Hash an answer to compare it with later ones: its text may be on disk by then."""
    text = f"{case.thought}\x1f{case.response}"
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def _note_faults(found: ValidatedCases, row: SourceRow, faults: list[Fault]) -> None:
    """List a row's faults; a column that rows lack alike is one fault for all of them."""
    reason = "; ".join(f"{fault.field}: {fault.got}" for fault in faults)
    found.faulty.append(Dropped(printable(read_id(row)[0]) or f"row-{row.number}", reason))
    known = {(fault.field, fault.got) for fault in found.faults[:16]}
    found.faults += [
        fault
        for fault in faults
        if not (fault.got.startswith(ONLY_COLUMNS) and (fault.field, fault.got) in known)
    ]
