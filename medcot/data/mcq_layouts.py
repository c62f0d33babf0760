"""Recognises how multiple-choice questions are laid out, and turns rows into those of one layout.

In that layout ``options`` maps letters from A on to texts, and ``answer_idx`` is a letter. Options
may also be a list, an object with other keys, a list of objects, or columns of their own; the
answer a letter or key, a number counted from 0 or 1, or the text of an option. Which of these the
answers are, all rows decide together: it is the reading under which most of them name an option.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from medcot.data.layouts import describe_unread, plain_name
from medcot.data.mcq_catalog import ANSWER
from medcot.data.readers import SourceRow
from medcot.data.text import printable
from medcot.errors import InputError, one_line

MOST_OPTIONS = 10
"""Options of a question: letters A to J."""

LETTERS = string.ascii_uppercase[:MOST_OPTIONS]

_QUESTIONS = ("question", "query", "stem", "prompt", "problem", "问题", "题目")
_OPTIONS = ("options", "choices", "选项")
_ANSWERS = (
    "answer_idx", "answer", "answerkey", "answer_key", "correct_answer", "correct", "cop", "label",
    "answer_index", "correct_option", "gold", "答案",
)  # fmt: skip
_SERIES = ("op{}", "option_{}", "option{}", "choice_{}", "{}")
"""Names of columns that hold an option each, with a letter or a number in it."""

_NATIVE = {"question", "options", ANSWER}

_KEPT = ("id", "lang", "context", "source")

_PREFIX = re.compile(r"\s*\(?([A-Ja-j])\s*[.):、．：）]\s*(?=\S)")
"""A letter that stands before the text of an option."""

_KEYS = (("key", "value"), ("label", "text"), ("id", "text"), ("letter", "text"))
"""Fields of options that are objects: what an answer names, and the text."""

_READINGS = ("letter", "text", "from 0", "from 1")


class _Options(NamedTuple):
    """The options of a row: texts by letter, and letters by the keys that the file has."""

    texts: dict[str, Any]
    keys: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Reading:
    """An answer column, and what its values are."""

    column: str
    kind: str

    def __str__(self) -> str:
        meaning = {
            "letter": "a letter or key",
            "text": "the text of an option",
            "from 0": "a number counted from 0",
            "from 1": "a number counted from 1",
        }
        return f"{one_line(printable(self.column), 40)} as {meaning[self.kind]}"


_CHECKED = _Reading("answer", "text")
"""A reading that the check of each row compares with the letter, where another one gives that."""


def recognise_questions(rows: Sequence[SourceRow]) -> tuple[Sequence[SourceRow], str]:
    """Return the rows in the one layout, and in one line what was recognised ("" if nothing).

    A row that cannot be read keeps its columns, so that checking it names what is wrong.

    Raises:
        InputError: The answers can be read in two ways that differ.
    """
    known = [row for row in rows if row.values]
    columns = list(dict.fromkeys(str(name) for row in known for name in row.values))
    questions = [name for name in columns if plain_name(name) in _QUESTIONS]
    options = [name for name in columns if plain_name(name) in _OPTIONS]
    if not known:
        return rows, ""
    if _is_native(known):
        left = describe_unread(columns, [*_NATIVE, "answer", *_KEPT])
        return rows, f"read as multiple choice: options from options, answer from {ANSWER}{left}"
    where = known[0].header or known[0].where
    for names, what in ((questions, "the question"), (options, "the options")):
        if len(names) > 1:
            shown = " or ".join(one_line(printable(name), 40) for name in names[:2])
            needs = "leave one of the columns out"
            raise InputError(where, f"found two readings: {what} from {shown}", needs)
    series = [] if options else _find_series(columns, where)
    if not questions or not (options or series):
        return rows, ""
    found = [_read_options(row, options, series) if row.values else None for row in rows]
    answers = [name for name in columns if plain_name(name) in _ANSWERS and name not in series]
    pairs = [(row, one) for row, one in zip(rows, found, strict=True) if one is not None]
    reading = _choose_reading(pairs, answers, where)
    assumed = reading or (_Reading(answers[0], "letter") if answers else None)
    made = [
        row if one is None else _convert(row, one, questions[0], assumed)
        for row, one in zip(rows, found, strict=True)
    ]
    given = options or series
    note = f"read as multiple choice: options from {one_line(printable(', '.join(given)), 80)}"
    note += f", answer from {reading}" if reading else ""
    return made, note + describe_unread(columns, [questions[0], *given, *answers, *_KEPT])


def _is_native(rows: Sequence[SourceRow]) -> bool:
    """Tell whether the first row has letters with texts, and a letter as answer, or no other."""
    first = next((row.values for row in rows if "options" in row.values), None)
    if first is None or "question" not in first or not isinstance(first["options"], dict):
        return False
    keys = [
        key for key, text in cast("dict[str, Any]", first["options"]).items() if text is not None
    ]
    lettered = all(len(key) == 1 and key.isupper() for key in keys)
    right = any(isinstance(row.values.get(ANSWER), str) for row in rows)
    return lettered and right


def _find_series(columns: Sequence[str], where: str) -> list[str]:
    """Return the columns that hold an option each, in their order: opa, opb, … or A, B, ….

    Raises:
        InputError: one is missing among them.
    """
    names = {plain_name(name): name for name in reversed(columns)}
    for form in _SERIES:
        for signs in (string.ascii_lowercase, "0123456789", ["1", *"23456789", "10"]):
            if form == "{}" and not signs[0].isalpha():
                continue
            plain = [form.format(sign) for sign in signs]
            row = [names.get(one) or names.get(one.replace("_", "")) for one in plain]
            found = [name for name in row if name is not None]
            if len(found) < 2 or row[0] is None:
                continue
            if row[len(found) - 1] is None or None in row[: len(found)]:
                shown = one_line(printable(", ".join(found)), 80)
                got = f"found the option columns {shown}, and one missing among them"
                raise InputError(where, got, "expected a column for each option")
            return found
    return []


def _read_options(row: SourceRow, options: Sequence[str], series: Sequence[str]) -> _Options | None:
    """Return a row's options, None where they are of no known shape."""
    if series:
        texts = [row.values.get(name) for name in series]
        while texts and texts[-1] in (None, ""):
            texts.pop()  # Questions with fewer options leave the last columns empty.
        made = _lettered(list(zip(_letters(len(texts)), texts, strict=True)))
        names = {plain_name(name): letter for name, letter in zip(series, made.texts, strict=False)}
        ends = ((re.search(r"\d+$", name), letter) for name, letter in names.items())
        numbers = {end[0]: letter for end, letter in ends if end}
        return made._replace(keys=numbers | names | made.keys)
    value = next((row.values[name] for name in options if name in row.values), None)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, dict):
        cells = cast("dict[str, Any]", value)
        labels, texts = cells.get("label"), cells.get("text")
        if isinstance(labels, list) and isinstance(texts, list):
            keys, values = cast("list[Any]", labels), cast("list[Any]", texts)
            if len(keys) != len(values):
                return None
            return _lettered([(str(key), text) for key, text in zip(keys, values, strict=True)])
        return _lettered([(str(key), text) for key, text in cells.items() if text is not None])
    if not isinstance(value, list):
        return None
    items = cast("list[Any]", value)
    if items and all(isinstance(one, dict) for one in items):
        first = cast("dict[str, Any]", items[0])
        names = next((pair for pair in _KEYS if set(pair) <= set(first)), None)
        if names is None:
            return None
        objects = cast("list[dict[str, Any]]", items)
        return _lettered([(str(one.get(names[0])), one.get(names[1])) for one in objects])
    return _lettered(_divide_prefixes(items))


def _divide_prefixes(items: Sequence[Any]) -> list[tuple[str, Any]]:
    """Return (letter, text) of listed options: the letters that all texts begin with, or by place.

    Only letters from A on that are all there count, so that "A. fumigatus" stays a text.
    """
    letters = _letters(len(items))
    found = [_PREFIX.match(one) if isinstance(one, str) else None for one in items]
    own = [one[1].upper() for one in found if one]
    if len(items) > 1 and sorted(own) == letters:
        texts = [one.string[one.end() :] for one in found if one]
        return sorted(zip(own, texts, strict=True))
    return list(zip(letters, items, strict=True))


def _letters(count: int) -> list[str]:
    return [LETTERS[n] if n < MOST_OPTIONS else f"option {n + 1}" for n in range(count)]


def _lettered(pairs: Sequence[tuple[str, Any]]) -> _Options:
    """Give each option its letter: its own key if all keys are letters, or else by its place."""
    own = [key.strip().upper() for key, _ in pairs]
    if not (len(set(own)) == len(own) and all(one in LETTERS and len(one) == 1 for one in own)):
        own = _letters(len(pairs))
    texts = {letter: text for letter, (_, text) in zip(own, pairs, strict=True)}
    keys = {key.strip().casefold(): letter for letter, (key, _) in zip(own, pairs, strict=True)}
    return _Options(texts, keys)


def _read_answer(value: Any, options: _Options, kind: str) -> str | None:
    """Return the letter that an answer stands for under a reading, or None."""
    letters = list(options.texts)
    if isinstance(value, list) and len(cast("list[Any]", value)) == 1:
        value = cast("list[Any]", value)[0]
    if kind == "letter":
        return _read_key(value, options)
    if kind == "text":
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            return None
        given = str(value).strip()
        same = [letter for letter, text in options.texts.items() if str(text).strip() == given]
        return same[0] if same else None
    number = _whole(value)
    if str(number) in options.keys:
        return None  # Options that are numbered by themselves leave nothing to count.
    at = None if number is None else number - int(kind[-1])
    return letters[at] if at is not None and 0 <= at < len(letters) else None


def _read_key(value: Any, options: _Options) -> str | None:
    """Return the letter whose key an answer is: alone, or before the text of its option."""
    if (number := _whole(value)) is not None:
        return options.keys.get(str(number))
    if not isinstance(value, str):
        return None
    value = unicodedata.normalize("NFKC", value)
    named = re.sub(r"[\s().:、．]", "", value).casefold()
    keys = options.keys
    if (
        letter := keys.get(value.strip().casefold())
        or keys.get(plain_name(value))
        or keys.get(named)
    ):
        return letter
    if prefix := _PREFIX.match(value):
        letter = keys.get(prefix[1].casefold())
        if letter and str(options.texts.get(letter)).strip() == value[prefix.end() :].strip():
            return letter
    return None


def _whole(value: Any) -> int | None:
    """Return a whole number, also one that a table holds as text or with a decimal point."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,3}(\.0)?\s*", value):
        return int(float(value))
    if isinstance(value, int | float) and value == value and abs(value) < 1000:
        return int(value) if int(value) == value else None
    return None


def _choose_reading(
    pairs: Sequence[tuple[SourceRow, _Options]], columns: Sequence[str], where: str
) -> _Reading | None:
    """Return the reading of the answers that gives most rows an option.

    Raises:
        InputError: Two that give as many give different options, and checking the rows would not
            show where.
    """
    found: list[tuple[int, _Reading, list[str | None]]] = []
    for column in columns:
        for kind in _READINGS:
            letters = [_read_answer(row.values.get(column), one, kind) for row, one in pairs]
            count = sum(letter is not None for letter in letters)
            if count:
                found.append((count, _Reading(column, kind), letters))
    if not found:
        return None
    most = max(count for count, _, _ in found)
    groups: dict[tuple[str | None, ...], list[_Reading]] = {}
    for count, reading, letters in found:
        if count == most:
            groups.setdefault(tuple(letters), []).append(reading)
    # Where one column can be read in two ways, another one that agrees decides.
    support = {letters: len({one.column for one in some}) for letters, some in groups.items()}
    best = [letters for letters in groups if support[letters] == max(support.values())]
    if {groups[letters][0].column for letters in best} != {_CHECKED.column}:
        best.sort(key=lambda letters: groups[letters][0] == _CHECKED)
    reading = groups[best[0]][0]
    for others in best[1:]:
        other = groups[others][0]
        differing = [
            n for n, pair in enumerate(zip(best[0], others, strict=True)) if len({*pair}) > 1
        ]
        # Single rows that the text in "answer" contradicts are reported by themselves.
        same = other.column == reading.column
        if same or other != _CHECKED or len(differing) > len(pairs) / 2:
            row = pairs[differing[0]][0]
            got = f"found two readings of the answers: {reading}, or {other}"
            mend = f"give {ANSWER} as a letter" if same else "leave one of the columns out"
            needs = f"they differ first in {row.where}; {mend}"
            raise InputError(where, one_line(got, 200), needs)
    _refuse_contradictions(pairs, reading, best[0], found)
    return reading


def _refuse_contradictions(
    pairs: Sequence[tuple[SourceRow, _Options]],
    reading: _Reading,
    letters: Sequence[str | None],
    found: Sequence[tuple[int, _Reading, list[str | None]]],
) -> None:
    """Refuse rows that another column, which mostly agrees, gives a different answer to.

    A column that agrees in less than most of the rows that both read is about something else.
    """
    for column in {other.column for _, other, _ in found} - {reading.column, _CHECKED.column}:
        wrong: list[dict[int, bool]] = []
        for _, other, its in found:
            if other.column == column:
                both = [
                    (n, pair) for n, pair in enumerate(zip(letters, its, strict=True)) if all(pair)
                ]
                wrong.append({n: one != two for n, (one, two) in both})
        differs = min(wrong, key=lambda rows: sum(rows.values()) / max(len(rows), 1))
        if 0 < sum(differs.values()) < len(differs) / 2:
            first = next(n for n, is_wrong in differs.items() if is_wrong)
            got = f"found {reading}, and another answer in {one_line(printable(column), 40)}"
            raise InputError(pairs[first][0].where, got, "correct one of the two")


def _convert(
    row: SourceRow, options: _Options, question: str, reading: _Reading | None
) -> SourceRow:
    values = {name: row.values[name] for name in _KEPT if name in row.values}
    if question in row.values:
        values["question"] = row.values[question]
    values["options"] = options.texts
    shown = {"question": question}
    if reading is not None:
        value = row.values.get(reading.column)
        letter = _read_answer(value, options, reading.kind)
        values[ANSWER] = letter if letter is not None else value
        shown[ANSWER] = reading.column
        text = row.values.get("answer")
        if reading.column != "answer" and isinstance(text, str) and text not in options.keys:
            values["answer"] = text
    return replace(row, values=values, shown=shown)
