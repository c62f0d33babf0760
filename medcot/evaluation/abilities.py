"""Asks whether training cost a model anything else, by items whose answers a rule can check.

Four kinds: general knowledge outside medicine, instructions whose following can be counted,
requests to refuse together with harmless ones that look like them, and questions with a false
premise. Each item carries its check (:mod:`.ability_checks`) as data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from medcot.data.cases import check_text, read_id, read_language
from medcot.data.prompts import (
    ChatTemplate,
    answer_after_thought,
    ask_choice_plainly,
    ask_plainly,
)
from medcot.data.readers import Fault, SourceRow
from medcot.data.sources import read_files, sample_files
from medcot.data.text import printable
from medcot.evaluation.ability_checks import Check, Choice, InvalidCheck, parse_check
from medcot.records import Language, Question

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


def choose_abilities(items: Sequence[Ability], count: int, seed: int) -> tuple[Ability, ...]:
    """Choose ``count`` items, of each kind as many as of the others, in the given order.

    They are chosen by a hash of their id, so that a larger number contains every smaller one.
    """

    def place(item: Ability) -> str:
        return hashlib.sha256(f"{seed}:{item.id}".encode()).hexdigest()

    kinds = [
        sorted((one for one in items if one.kind == kind), key=place)
        for kind in get_args(AbilityKind)
    ]
    longest = max(map(len, kinds), default=0)
    in_turn = [kind[turn] for turn in range(longest) for kind in kinds if turn < len(kind)]
    chosen = {item.id for item in in_turn[:count]}
    return tuple(item for item in items if item.id in chosen)


def ask_ability(item: Ability, chat: ChatTemplate | None = None) -> str:
    """Return the prompt: the item alone, as the model's own chat template puts it.

    Nothing asks for a thought. A base model that never learnt to close one would fail every item,
    before training alone, and hide what the training cost.
    """
    if isinstance(item.check, Choice):
        question = Question(
            item.id, item.prompt, item.check.options, item.check.answer, item.language
        )
        return ask_choice_plainly(question, chat)
    return ask_plainly(item.prompt, item.language, chat)


def read_answer(output: str) -> str:
    """Return what ``output`` says after its thought, where it has one.

    A thought that never closes leaves no answer.
    """
    return (answer_after_thought(output) or "").strip()


def is_passed(item: Ability, output: str) -> bool:
    """Tell whether ``output`` passes the item's check. No answer passes nothing."""
    answer = read_answer(output)
    return bool(answer) and item.check.passes(answer, item.language)


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
