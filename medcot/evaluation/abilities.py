"""Asks whether training cost a model anything else, by items whose answers a rule can check.

Four kinds: general knowledge outside medicine, instructions whose following can be counted,
requests to refuse together with harmless ones that look like them, and questions with a false
premise. Each item carries its check (:mod:`.ability_checks`) as data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast, get_args

from medcot.data.cases import check_text, read_id, read_language
from medcot.data.prompts import CLOSE, OPEN, ChatTemplate, ask, ask_choice
from medcot.data.readers import Fault, SourceRow
from medcot.data.sources import read_files, sample_files
from medcot.data.text import printable
from medcot.evaluation.ability_checks import Check, Choice, InvalidCheck, parse_check
from medcot.records import Language, Question, Style

AbilityKind = Literal["knowledge", "instruction", "refusal", "false_premise"]


@dataclass(frozen=True, slots=True)
class Ability:
    """One item: what is asked, and the check that its answer passes or fails.

    The options of a ``choice`` are not part of ``prompt``; :func:`ask_ability` adds them.
    """

    id: str
    language: Language
    kind: AbilityKind
    prompt: str
    check: Check


def load_abilities(language: Language) -> tuple[Ability, ...]:
    """Load the bundled items in ``language``.

    Raises:
        InputError: the install is damaged.
    """
    return parse_abilities(read_files(sample_files("abilities", language)), language)


def parse_abilities(rows: Iterable[SourceRow], language: Language) -> tuple[Ability, ...]:
    """Parse rows into items; ``language`` is that of rows that name none.

    Raises:
        InputError: a row is wrong, or has the id of an earlier one.
    """
    items: dict[str, Ability] = {}
    for row in rows:
        item = _parse_row(row, language)
        if item.id in items:
            got = f"{printable(item.id)!r}, which an earlier row has"
            raise Fault(row.where, "id", got, "an id of its own").as_error()
        items[item.id] = item
    return tuple(items.values())


def ask_ability(item: Ability, style: Style, chat: ChatTemplate | None = None) -> str:
    """Return the inference prompt, up to and including the opened thought."""
    if isinstance(item.check, Choice):
        question = Question(
            item.id, item.prompt, item.check.options, item.check.answer, item.language
        )
        return ask_choice(question, style, chat)
    return ask(item.prompt, style, item.language, chat)


def is_passed(item: Ability, answer: str) -> bool:
    """Tell whether ``answer`` passes the item's check.

    A thought that is still there is dropped; one that never closes leaves no answer, and no
    answer passes nothing.
    """
    if CLOSE in answer:
        answer = answer.partition(CLOSE)[2]
    elif OPEN in answer:
        return False
    return bool(answer.strip()) and item.check.passes(answer, item.language)


def _parse_row(row: SourceRow, default: Language) -> Ability:
    if row.fault:
        raise row.fault.as_error()
    identity, faults = read_id(row)
    language, language_faults = read_language(row, default)
    faults += language_faults + check_text(row, "prompt")
    kind = row.values.get("kind")
    if kind not in get_args(AbilityKind):
        needs = f"one of {', '.join(get_args(AbilityKind))}"
        faults.append(Fault(row.where, "kind", printable(repr(kind)), needs))
    if faults:
        raise faults[0].as_error()
    try:
        check = parse_check(row.values.get("check"))
    except InvalidCheck as error:
        fault = Fault(row.where, "check", printable(error.got), error.needs)
        raise fault.as_error() from None
    return Ability(identity, language, cast("AbilityKind", kind), row.values["prompt"], check)
