"""Recognises how a data set is laid out, and turns its rows into those of one layout.

The columns of FreedomIntelligence/medical-o1-reasoning-SFT are that layout: ``Question``,
``Complex_CoT`` and ``Response``. Rows that have them are passed on as they are. Recognised by the
first rows are columns of other usual names (Alpaca's among them), prompt and completion, and
conversations. A set that can be read in two ways is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, product
from typing import Any, Literal, NamedTuple, cast

from medcot.config.schema import RunConfig, read_columns
from medcot.data.prompts import CLOSE, OPEN
from medcot.data.readers import Fault, SourceRow, Values, describe_type
from medcot.data.text import printable
from medcot.errors import InputError, one_line
from medcot.records import Role, Turn

QUESTION, THOUGHT, RESPONSE = "Question", "Complex_CoT", "Response"

ONLY_COLUMNS = "only the columns"
"""How a fault begins that is the same in every row of a file."""

HEAD_ROWS, HEAD_CHARACTERS = 64, 1 << 22
"""The rows by which a layout is recognised: these many, or fewer that are longer together."""

MOST_TURNS = 1000
"""Turns of a conversation."""

_NAMES: dict[str, tuple[str, ...]] = {
    "question": ("question", "prompt", "instruction", "query", "problem", "input", "问题"),
    "input": ("input", "context"),
    "thought": (
        "complex_cot", "cot", "thought", "thoughts", "reasoning", "reasoning_content",
        "chain_of_thought", "rationale", "thinking", "思考", "推理",
    ),
    "answer": (
        "response", "answer", "output", "completion", "solution", "回答", "答案",
    ),
    "system": ("system", "system_prompt"),
    "messages": ("messages", "conversations", "conversation"),
}  # fmt: skip
"""What data sets call their columns, in small letters."""

_ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
}  # fmt: skip

_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
"""Fields of a message that hold its thought."""

OPTION_COLUMNS = (
    {"options"}, {"choices"}, {"选项"}, {"opa", "opb"}, {"option_a", "option_b"},
    {"optiona", "optionb"}, {"option_1", "option_2"}, {"option1", "option2"}, {"a", "b"},
)  # fmt: skip
"""Columns that sets of multiple-choice questions have: one of these groups."""

_KEPT = ("id", "lang", "specialty", "source", "reference", "reference_answer", "claims")
"""Columns that are the same in every layout."""

_HISTORY = ("history", "chat_history")
"""Columns with earlier turns, which no layout reads."""

_BY_NAME = "the named columns"
"""What the layout is called whose columns the user named."""

_TELLING = frozenset(_HISTORY).union(*_NAMES.values())
"""Names of columns that a row may not have unread: what they hold belongs to a case."""

_BESIDE_MESSAGES = _TELLING.difference(*(_NAMES[one] for one in ("question", "input", "answer")))
"""Those beside messages, which hold the questions and answers themselves."""

_TEXT_PARTS = (None, "text", "input_text", "output_text")
"""Types of the parts of a message that are its text; others may be thoughts or pictures."""

_PYTHON_MESSAGES = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from|value)'\s*:")
"""How messages begin that Python, not JSON, wrote into a cell."""

Place = Literal["column", "tags", "field", "nowhere"]
"""Where a thought stands: a column, <think> tags of the answer, a message's field."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user said about the data: see the fields of the same names in `RunConfig`."""

    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    thought: Literal["auto", "train", "none"] = "auto"
    train_turns: Literal["last", "all"] = "last"

    @classmethod
    def of(cls, config: RunConfig) -> Wanted:
        """Return what ``config`` says."""
        thought = config.thought if config.thought in ("auto", "none") else "train"
        return cls(read_columns(config.columns), thought, config.train_turns)


@dataclass(frozen=True, slots=True)
class Recognised:
    """The rows of a source in the one layout, whether they have thoughts, and what to tell."""

    rows: Iterator[SourceRow]
    thinks: bool
    note: str


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which column holds what: ``question`` and ``answer``, or ``messages``, and more."""

    name: str
    columns: Mapping[str, str]
    thought: Place = "nowhere"
    passed_over: frozenset[str] | None = None
    """Columns that a row may have beside those: the first rows have them. None allows all."""

    @property
    def is_own(self) -> bool:
        """Tell whether rows need no change: the columns have the names that others get."""
        own = {"question": QUESTION, "thought": THOUGHT, "answer": RESPONSE}
        return dict(self.columns) == own and self.thought == "column"

    def describe(self, wanted: Wanted, there: Iterable[str]) -> str:
        """Return in one line what was recognised, and which of the columns are not read."""
        columns = {role: one_line(printable(name), 60) for role, name in self.columns.items()}
        used = [*self.columns.values(), *_KEPT]
        if self.thought == "nowhere" and "thought" in self.columns:
            used.remove(self.columns["thought"])
        if "messages" in columns:
            trained = "every turn" if wanted.train_turns == "all" else "the last turn"
            answer = f"{trained} of the assistant in {columns['messages']} is trained"
            parts = [answer]
        else:
            asked = " and ".join(columns[one] for one in ("question", "input") if one in columns)
            parts = [f"question from {asked}", f"answer from {columns['answer']}"]
        if "system" in columns:
            parts.append(f"system prompt from {columns['system']}")
        place = {
            "column": f"thought from {columns.get('thought')}",
            "tags": f"thought from {OPEN} tags",
            "field": "thought from a field of the message",
            "nowhere": "no thought",
        }[self.thought]
        if wanted.thought == "none" and self.thought != "nowhere":
            place += ", which is left out"
        return f"read as {self.name}: {', '.join(parts)}, {place}{describe_unread(there, used)}"


def describe_unread(there: Iterable[str], used: Iterable[str]) -> str:
    """Return the end of a note that names the columns which are not used, "" without any."""
    left = [name for name in there if name and name not in {*used}]
    return f"; not used: {one_line(printable(', '.join(left)), 100)}" if left else ""


def recognise(rows: Iterable[SourceRow], wanted: Wanted) -> Recognised:
    """Recognise the layout by the first rows, and return all rows in the one layout.

    Raises:
        InputError: The rows can be read in two ways, are multiple-choice questions, lack a column
            that the user named, or have no thoughts where the user wants them.
    """
    remaining = iter(rows)
    head = _take_head(remaining)
    known = [row for row in head if row.values]
    everything = chain(head, remaining)
    if not known:
        return Recognised(everything, thinks=True, note="")
    columns = list(dict.fromkeys(str(name) for row in known for name in row.values))
    layout = _find_layout(known, columns, wanted.columns)
    if layout is None:
        return Recognised(everything, thinks=True, note="")
    layout = replace(layout, thought=_find_thought(known, layout))
    if not wanted.columns:
        beside = _thoughts_beside(columns, layout) if wanted.thought != "none" else []
        _refuse_thoughts_beside(known, beside, layout)
        quiet = {name for name in columns if plain_name(name) not in _HISTORY} - {*beside}
        layout = replace(layout, passed_over=frozenset(quiet))
    note = layout.describe(wanted, columns)
    thinks = layout.thought != "nowhere" and wanted.thought != "none"
    if wanted.thought == "train" and not thinks:
        got = f"no thought in the first rows of {_place(known[0])}"
        raise InputError("--thought train", got, "use --thought auto, or data with thoughts")
    if layout.is_own and thinks:
        checked = (_check_columns(row, layout) for row in everything)
        return Recognised(checked, thinks, note)
    made = (one for row in everything for one in _convert(row, layout, wanted))
    return Recognised(made, thinks, note)


def looks_like_questions(values: Values) -> bool:
    """Tell whether a row is a multiple-choice question: it has options."""
    names = {plain_name(str(name)) for name in values}
    return any(group <= names for group in OPTION_COLUMNS)


def _take_head(rows: Iterator[SourceRow]) -> list[SourceRow]:
    head: list[SourceRow] = []
    size = 0
    for row in rows:
        head.append(row)
        size += sum(len(cell) for cell in row.values.values() if isinstance(cell, str))
        if len(head) >= HEAD_ROWS or size > HEAD_CHARACTERS:
            break
    return head


def _place(row: SourceRow) -> str:
    return row.header or row.where


def plain_name(name: str) -> str:
    """Return a column's name as it is compared: in small letters, with ``_`` for blanks."""
    return re.sub(r"[\s_-]+", "_", name[:80].strip().lower())


def _find_layout(
    rows: Sequence[SourceRow], columns: Sequence[str], named: Mapping[str, str]
) -> _Layout | None:
    if named:
        for name in named.values():
            if name not in columns:
                shown = one_line(printable(", ".join(columns)))
                raise InputError(
                    f"--columns {name}", f"{_place(rows[0])} has {ONLY_COLUMNS} {shown}",
                    "expected the name of one of them",
                )  # fmt: skip
        _refuse_messages(rows, named.items())
        return _Layout(_BY_NAME, named)
    _refuse_messages(rows, [("messages", name) for name in _named(columns, "messages")])
    # Two are enough to refuse, and columns by the hundred have readings by the million.
    found = chain(_conversations(columns, rows), _column_readings(columns, rows))
    readings = list(islice(found, 2))
    if len(readings) > 1:
        first, second = (_as_option(one.columns) for one in readings)
        raise InputError(
            _place(rows[0]), f"found two readings of its columns: {first} or {second}",
            f"say which: --columns {first}",
        )  # fmt: skip
    asked = readings or _named(columns, "question")
    if asked and looks_like_questions(dict.fromkeys(columns)):
        got = "found multiple-choice questions"
        needs = "give them with --mcq, or name the columns to train on with --columns"
        raise InputError(_place(rows[0]), got, needs)
    if not readings:
        return None
    _refuse_messages(rows, readings[0].columns.items())
    return readings[0]


def _refuse_messages(rows: Sequence[SourceRow], columns: Iterable[tuple[str, str]]) -> None:
    """Refuse cells that hold messages where a text is read, or messages that are no JSON.

    A table has them as text, so that they would be trained on as they are.
    """
    roles = list(columns)
    talk = any(role == "messages" for role, _ in roles)
    for role, name in roles:
        row, value = _first_value(name, rows)
        shown = f"messages in {one_line(printable(name), 40)}"
        if isinstance(value, str) and _PYTHON_MESSAGES.match(value):
            needs = "write them as JSON, with json.dumps"
            raise InputError(_place(row), f"found {shown} as Python prints them", needs)
        if not talk and _is_conversation(value):
            needs = "texts, or all turns in one column: --columns messages=NAME"
            raise InputError(_place(row), f"found {shown} as the {role}", f"expected {needs}")


def _first_value(column: str, rows: Sequence[SourceRow]) -> tuple[SourceRow, Any]:
    """Return the first row that has a value in a column, and that; the first row and None."""
    found = ((row, row.values.get(column)) for row in rows)
    return next((one for one in found if one[1] not in (None, "")), (rows[0], None))


def _is_conversation(value: Any) -> bool:
    """Tell whether a cell holds messages, also as JSON."""
    first: Any = next(iter(_as_list(value)), None)
    return isinstance(first, dict) and not {"role", "from"}.isdisjoint(cast("Values", first))


def _thoughts_beside(columns: Sequence[str], layout: _Layout) -> list[str]:
    """Return the columns for thoughts beside messages, in which alone they are read."""
    return _named(columns, "thought") if "messages" in layout.columns else []


def _refuse_thoughts_beside(
    rows: Sequence[SourceRow], beside: Sequence[str], layout: _Layout
) -> None:
    for name in beside:
        row, value = _first_value(name, rows)
        if value is not None:
            alone = f"leave them out: --columns {_as_option(layout.columns)}"
            got = f"found thoughts in the column {one_line(printable(name), 40)}, beside messages"
            needs = f"put them into the messages as reasoning_content, or {alone}"
            raise InputError(_place(row), got, needs)


def _check_columns(row: SourceRow, layout: _Layout) -> SourceRow:
    """Return the row, faulty if it has a value in a column that is not read but should be."""
    if layout.passed_over is None or row.values.keys() <= layout.passed_over:
        return row
    telling = _BESIDE_MESSAGES if "messages" in layout.columns else _TELLING
    for name in row.values:
        if name in layout.passed_over or row.values[name] in (None, "", []):
            continue
        if (plain := plain_name(str(name))) in telling:
            got = f"a {describe_type(row.values[name])} in a column that the first rows have not"
            needs = "the columns of the first rows, or --columns to say which to read"
            if plain in _HISTORY:
                got, needs = "earlier turns", "them in messages, or --columns to leave them out"
            return _faulty(row, str(name), got, needs)
    return row


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _conversations(columns: Sequence[str], rows: Sequence[SourceRow]) -> Iterator[_Layout]:
    """Yield the readings of columns that hold conversations."""
    systems = _named(columns, "system") or [""]
    for column, system in product(_named(columns, "messages"), systems):
        chosen = _without_blanks({"messages": column, "system": system})
        values = (_as_list(row.values.get(column)) for row in rows)
        firsts: Iterator[Any] = (one[0] for one in values if one)
        empty: dict[str, Any] = {}
        first = cast("dict[str, Any]", next(filter(_is_object, firsts), empty))
        if "from" in first or "value" in first:
            yield _Layout("ShareGPT", chosen)
        elif "role" in first or "content" in first:
            yield _Layout("messages", chosen)
    if {"prompt", "completion"} <= set(columns) and _holds_lists("prompt", rows):
        for system in systems:
            chosen = {"messages": "prompt", "answer": "completion", "system": system}
            yield _Layout("prompt and completion", _without_blanks(chosen))


def _column_readings(columns: Sequence[str], rows: Sequence[SourceRow]) -> Iterator[_Layout]:
    """Yield the readings of columns as question and answer; two or more where names compete."""
    found = {role: _named(columns, role) for role in _NAMES}
    questions, inputs = found["question"], found["input"]
    questions = [name for name in questions if not _holds_lists(name, rows)]
    if len(questions) > 1:
        questions = [name for name in questions if name not in inputs]
    inputs = [name for name in inputs if name not in questions]
    names = {plain_name(name) for name in columns}
    title = "columns"
    if {"instruction", "output"} <= names:
        title = "Alpaca"
    elif {"prompt", "completion"} <= names:
        title = "prompt and completion"
    choices = {
        "question": questions,
        "thought": found["thought"] or [""],
        "answer": found["answer"],
        "input": inputs or [""],
        "system": found["system"] or [""],
    }
    for names in product(*choices.values()):
        yield _Layout(title, _without_blanks(dict(zip(choices, names, strict=True))))


def _without_blanks(columns: Mapping[str, str]) -> dict[str, str]:
    """Leave out the parts for which there is no column."""
    return {role: name for role, name in columns.items() if name}


def _holds_lists(column: str, rows: Sequence[SourceRow]) -> bool:
    value = _first_value(column, rows)[1]
    return isinstance(value, list) or _is_conversation(value)


def _named(columns: Sequence[str], role: str) -> list[str]:
    """Return the columns that are usual for a role."""
    return [name for name in columns if plain_name(name) in _NAMES[role]]


def _as_option(columns: Mapping[str, str]) -> str:
    return ",".join(f"{role}={one_line(printable(name), 40)}" for role, name in columns.items())


def _find_thought(rows: Sequence[SourceRow], layout: _Layout) -> Place:
    """Return where the first rows have their thoughts.

    A column for them that is empty in all of these holds none, unless the user named it or it has
    the name of our own layout.

    Raises:
        InputError: in two places.
    """
    column = layout.columns.get("thought")
    given = column == THOUGHT or layout.name == _BY_NAME
    if column and (given or _first_value(column, rows)[1] is not None):
        return "column"
    places: dict[Place, str] = {}
    for row in rows:
        for text, thought in _answers(row, layout):
            if isinstance(text, str) and _has_tags(text) and _divide(text)[0]:
                places.setdefault("tags", f"{OPEN} tags of the answer")
            if thought:
                places.setdefault("field", "a field of the message")
    if len(places) > 1:
        first, second = list(places.values())[:2]
        needs = "keep the thoughts in one place"
        raise InputError(
            _place(rows[0]), f"found thoughts in two places: {first} and {second}", needs
        )
    return next(iter(places)) if places else "nowhere"


def _answers(row: SourceRow, layout: _Layout) -> Iterator[tuple[Any, Any]]:
    """Yield (content, thought field) of what the assistant says in a row."""
    if "messages" not in layout.columns:
        yield row.values.get(layout.columns["answer"]), None
        return
    for message in _messages(row, layout):
        if isinstance(message, dict):
            said = cast("dict[str, Any]", message)
            role = said.get("role") or said.get("from")
            if _ROLES.get(str(role).lower()) == "assistant":
                yield _content(said), _thought_field(said)


def _has_tags(text: str) -> bool:
    return text.lstrip().startswith(OPEN) and CLOSE in text


def _divide(text: str) -> tuple[str, str]:
    """Divide an answer that begins with a thought in tags."""
    thought, _, answer = text.lstrip().removeprefix(OPEN).partition(CLOSE)
    return thought.strip(), answer.strip()


def _messages(row: SourceRow, layout: _Layout) -> list[Any]:
    """Return the messages of a row; those of the completion come after those of the prompt."""
    found = list(_as_list(row.values.get(layout.columns["messages"])))
    if "answer" in layout.columns:
        completion = row.values.get(layout.columns["answer"])
        if isinstance(completion, str) and not _is_conversation(completion):
            found.append({"role": "assistant", "content": completion})
        else:
            found += _as_list(completion)
    return found


def _as_list(value: Any) -> list[Any]:
    """Return a list, also one that is written as JSON in a cell."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return cast("list[Any]", value) if isinstance(value, list) else []


def _content(message: Values) -> Any:
    """Return a message's text; parts that are texts are joined."""
    value = message.get("content") if "content" in message else message.get("value")
    if not isinstance(value, list):
        return value
    parts = cast("list[Any]", value)
    objects = [cast("Values", one) for one in parts if isinstance(one, dict)]
    texts = [one.get("text") for one in objects if one.get("type") in _TEXT_PARTS]
    if len(texts) == len(parts) and all(isinstance(one, str) for one in texts):
        return "".join(cast("list[str]", texts))
    return parts


def _thought_field(message: Values) -> Any:
    return next((message[key] for key in _THOUGHT_KEYS if message.get(key)), None)


def _convert(row: SourceRow, layout: _Layout, wanted: Wanted) -> Iterator[SourceRow]:
    """Yield the row in the one layout: one row, or one for each trained turn."""
    row = row if row.fault else _check_columns(row, layout)
    if row.fault:
        yield row
    elif "messages" in layout.columns:
        yield from _convert_conversation(row, layout, wanted)
    else:
        yield _convert_columns(row, layout, wanted)


def _convert_columns(row: SourceRow, layout: _Layout, wanted: Wanted) -> SourceRow:
    columns = layout.columns
    needed = [name for role, name in columns.items() if role not in ("input", "system")]
    if missing := [name for name in needed if name not in row.values]:
        shown = one_line(printable(", ".join(map(str, row.values)))) or "none"
        return _faulty(row, missing[0], f"{ONLY_COLUMNS} {shown}", ", ".join(missing), header=True)
    question = row.values[columns["question"]]
    extra = row.values.get(columns["input"]) if "input" in columns else None
    if extra not in (None, ""):
        if not isinstance(extra, str):
            return _faulty(row, columns["input"], describe_type(extra), "text")
        if isinstance(question, str) and extra.strip():
            question = f"{question.strip()}\n\n{extra.strip()}"
    said = _Said(row.values[columns["answer"]], None, columns["answer"])
    if "thought" in columns:
        said = said._replace(thought=row.values[columns["thought"]])
    system = row.values.get(columns["system"]) if "system" in columns else None
    if not (system is None or isinstance(system, str)):
        return _faulty(row, columns["system"], describe_type(system), "text")
    turns = (Turn("system", system.strip()),) if system and system.strip() else ()
    shown = {QUESTION: columns["question"], RESPONSE: columns["answer"]}
    if "thought" in columns:
        shown[THOUGHT] = columns["thought"]
    return _make_row(row, layout, wanted, question, said, turns, shown)


class _Said(NamedTuple):
    """What somebody says in a turn, the name of its place, and whether it may be trained."""

    content: Any
    thought: Any
    place: str
    trains: bool = True


def _make_row(
    row: SourceRow,
    layout: _Layout,
    wanted: Wanted,
    question: Any,
    said: _Said,
    turns: tuple[Turn, ...],
    shown: Mapping[str, str],
) -> SourceRow:
    """Return a row of the one layout; ``shown`` maps its columns to their names in the file."""
    response, thought = said.content, said.thought
    if isinstance(response, str) and _has_tags(response) and not _divide(response)[0]:
        response = _divide(response)[1]  # Empty tags say that there is no thought.
    if isinstance(response, str) and response.lstrip().startswith(OPEN):
        if thought:
            return _faulty(row, said.place, f"a second thought, in {OPEN} tags", "one thought")
        if layout.thought != "tags":
            got = f"a thought, unlike in the first rows, in {OPEN} tags"
            return _faulty(row, said.place, got, _ALIKE)
        if CLOSE in response:
            thought, response = _divide(response)
    elif layout.thought == "nowhere" and thought:
        return _faulty(row, said.place, "a thought, unlike in the first rows", _ALIKE)
    drop = wanted.thought == "none"
    thinks = layout.thought != "nowhere" and not drop
    if thinks and not thought and layout.thought != "column":
        # Chat templates keep no thoughts of earlier turns, and so do the sets made with them.
        if wanted.train_turns == "last":
            return _faulty(row, said.place, "no thought, unlike in the first rows", _ALIKE)
        thinks = False
    values = {name: row.values[name] for name in _KEPT if name in row.values}
    values |= {QUESTION: question, RESPONSE: response}
    values[THOUGHT] = thought if thinks else ""
    names = {**shown, THOUGHT: shown.get(THOUGHT, said.place)}
    return replace(row, values=values, shown=names, turns=turns, thinks=thinks, header="")


_ALIKE = "thoughts in all rows or in none (--thought none leaves them out)"


def _faulty(row: SourceRow, name: str, got: str, needs: str, *, header: bool = False) -> SourceRow:
    where = row.header or row.where if header else row.where
    return replace(row, fault=Fault(where, printable(name), got, needs))


def _convert_conversation(row: SourceRow, layout: _Layout, wanted: Wanted) -> Iterator[SourceRow]:
    column = layout.columns["messages"]
    read = _read_turns(row, layout)
    if isinstance(read, Fault):
        yield replace(row, fault=read)
        return
    system, turns = read
    answers = range(1, len(turns), 2)
    trained = [at for at in answers if turns[at].trains]
    if wanted.train_turns == "last":
        if answers and answers[-1] not in trained:
            got = "a weight of 0, which says not to train on it"
            yield _faulty(row, turns[answers[-1]].place, got, "a last turn to train on")
            return
        trained = trained[-1:]
    for count, at in enumerate(trained, 1):
        before: list[Turn] = [*system]
        for asked, said in zip(turns[: at - 1 : 2], turns[1 : at - 1 : 2], strict=True):
            before += [Turn("user", asked.content), Turn("assistant", _answer_alone(said.content))]
        question = turns[at - 1]
        shown = {QUESTION: question.place, RESPONSE: turns[at].place}
        made = _make_row(row, layout, wanted, question.content, turns[at], tuple(before), shown)
        if len(trained) > 1 and not made.fault:
            own = row.values.get("id")
            base = f"row-{row.number}" if own in (None, "") else own
            if isinstance(base, str | int) and not isinstance(base, bool):
                made = replace(made, values={**made.values, "id": f"{base}/{count}"})
        yield made
    if not trained:
        yield _faulty(row, column, "no turn of the assistant", "a user's turn and its answer")


def _answer_alone(content: str) -> str:
    """Leave out the thought of an earlier turn, as chat templates do."""
    return _divide(content)[1] if _has_tags(content) else content.strip()


def _read_turns(row: SourceRow, layout: _Layout) -> tuple[list[Turn], list[_Said]] | Fault:
    """Return the system prompt, if any, and the turns: the user's and the assistant's in turn."""
    column = layout.columns["messages"]
    if column not in row.values:
        shown = one_line(printable(", ".join(map(str, row.values)))) or "none"
        return Fault(row.header or row.where, column, f"{ONLY_COLUMNS} {shown}", column)
    messages = _messages(row, layout)
    if not messages or len(messages) > MOST_TURNS:
        value = row.values[column]
        got = f"{len(messages):,} turns" if messages else f"{describe_type(value)} without turns"
        return Fault(row.where, column, got, f"a list of 1 to {MOST_TURNS:,} messages")
    system: list[Turn] = []
    own = row.values.get(layout.columns["system"]) if "system" in layout.columns else None
    if not (own is None or isinstance(own, str)):
        return Fault(row.where, printable(layout.columns["system"]), describe_type(own), "text")
    if own and own.strip():
        system.append(Turn("system", own.strip()))
    turns: list[_Said] = []
    for at, message in enumerate(messages):
        found = _read_message(row, f"{column}[{at}]", message)
        if isinstance(found, Fault):
            return found
        role, said = found
        if role == "system" and not said.content:
            continue  # As exports of chats write it where there is none.
        if role == "system" and not turns and not system:
            system.append(Turn("system", str(said.content).strip()))
            continue
        if role != ("assistant" if len(turns) % 2 else "user"):
            expected = "the assistant's turn" if len(turns) % 2 else "the user's turn"
            return Fault(row.where, f"{column}[{at}]", f"a turn of the {role}", expected)
        turns.append(said)
    if len(turns) % 2:
        got = "a conversation that ends with the user's turn"
        return Fault(row.where, f"{column}[{len(messages) - 1}]", got, "an answer to it")
    return system, turns


def _read_message(row: SourceRow, place: str, message: Any) -> tuple[Role, _Said] | Fault:
    if not isinstance(message, dict):
        got, needs = describe_type(message), 'an object like {"role": "user", "content": "text"}'
        return Fault(row.where, place, got, needs)
    values = cast("dict[str, Any]", message)
    named = values.get("role") or values.get("from")
    role = _ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        got = f"the role {one_line(printable(repr(named)), 40)}"
        return Fault(row.where, place, got, f"one of {', '.join(_ROLES)}")
    content = _content(values)
    if role == "system" and content in ("", None):
        return role, _Said("", None, place)
    if not isinstance(content, str) or not content.strip():
        got = "empty text" if isinstance(content, str) else describe_type(content)
        return Fault(row.where, place, got, "a message with a text")
    if values.get("tool_calls") or values.get("function_call"):
        return Fault(row.where, place, "a call of a tool", "plain text")
    thoughts = {key: values[key] for key in _THOUGHT_KEYS if values.get(key)}
    if len({repr(one) for one in thoughts.values()}) > 1:
        got = f"two thoughts that differ, in {' and '.join(list(thoughts)[:2])}"
        return Fault(row.where, place, got, "one thought")
    thought = _thought_field(values) if role == "assistant" else None
    return role, _Said(content, thought, place, trains=values.get("weight") != 0)
