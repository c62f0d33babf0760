"""Data sets in other layouts, formats and encodings: what is recognised, and what is refused."""

# The table of malformed files is read by its rows.
# ruff: noqa: E501

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from medcot.config.presets import make_config
from medcot.config.schema import build_config
from medcot.data import dataset, streams
from medcot.data.cases import unit_hash
from medcot.data.dataset import load_dataset, settle_thought, split_cases
from medcot.data.inspection import describe_inspection, inspect_dataset
from medcot.data.layouts import HEAD_ROWS
from medcot.data.mcq import load_questions
from medcot.data.readers import SourceRow
from medcot.errors import InputError
from medcot.records import Dataset, Turn

QUESTION, THOUGHT, ANSWER = "What is wrong?", "Let me see.", "Nothing."
TAGGED = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"


def load(path: Path | str, **options: Any) -> Dataset:
    return load_dataset(make_config("demo", {"dataset": str(path), **options}))


def jsonl(*rows: Any) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def sharegpt(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": text} for who, text in pairs]}


PAIR = (said("user", QUESTION), said("assistant", TAGGED))
FIELD = (said("user", QUESTION), said("assistant", ANSWER, reasoning_content=THOUGHT))
NATIVE = {"Question": QUESTION, "Complex_CoT": THOUGHT, "Response": ANSWER}

LAYOUTS: list[tuple[dict[str, Any], str]] = [
    (NATIVE, "columns: question from Question, answer from Response, thought from Complex_CoT"),
    ({"prompt": QUESTION, "Reasoning": THOUGHT, "output": ANSWER}, "question from prompt, answer from output, thought from Reasoning"),
    ({"问题": QUESTION, "思考": THOUGHT, "答案": ANSWER}, "question from 问题, answer from 答案, thought from 思考"),
    ({"instruction": QUESTION, "input": "", "output": TAGGED}, "Alpaca: question from instruction and input, answer from output, thought from <think> tags"),
    ({"prompt": QUESTION, "completion": TAGGED}, "prompt and completion: question from prompt, answer from completion"),
    ({"Question": QUESTION, "Reasoning": THOUGHT, "Response": ANSWER}, "question from Question, answer from Response, thought from Reasoning"),
    ({"prompt": [PAIR[0]], "completion": [PAIR[1]]}, "prompt and completion: the last turn of the assistant in prompt is trained"),
    (sharegpt(("system", ""), ("human", QUESTION), ("gpt", TAGGED)), "ShareGPT: the last turn of the assistant in conversations is trained"),
    (chat(*PAIR), "messages: the last turn of the assistant in messages is trained, thought from <think> tags"),
    (chat(*FIELD, prompt="x"), "thought from a field of the message; not used: prompt"),
    ({"question": QUESTION, "reasoning": None, "answer": TAGGED}, "answer from answer, thought from <think> tags"),
    ({"prompt": json.dumps([PAIR[0]]), "completion": json.dumps([PAIR[1]])}, "the last turn of the assistant in prompt"),
    (chat(PAIR[0], said("assistant", ANSWER, reasoning=THOUGHT, reasoning_content=THOUGHT)), "thought from a field"),
    (chat(said("user", [{"type": "text", "text": QUESTION}]), FIELD[1]), "thought from a field"),
    ({"messages": json.dumps(FIELD)}, "thought from a field of the message"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "says"), LAYOUTS, ids=range(len(LAYOUTS)))
def test_layouts_are_recognised_and_give_the_same_case(tmp_path: Path, row: Any, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(row))
    found = load(path)
    (case,) = found.cases
    assert (case.question, case.thought, case.response, case.turns) == (
        QUESTION,
        THOUGHT,
        ANSWER,
        (),
    )
    assert says in found.notes[0]
    assert found.notes[0].startswith(f"{path}: read as ")
    assert "\n" not in found.notes[0]
    assert found.notes[0] in list(describe_inspection(inspect_dataset(
        make_config("demo", {"dataset": str(path)})
    )))  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        {"question": QUESTION, "answer": ANSWER},
        {"instruction": "Answer.", "input": QUESTION, "output": ANSWER},
        chat(said("user", QUESTION), said("assistant", ANSWER)),
        {"question": QUESTION, "answer": f"<think>\n\n</think>\n\n{ANSWER}"},
        {"question": QUESTION, "answer": ANSWER, "reasoning": ""},
        chat(said("user", QUESTION), said("assistant", f"<think></think>{ANSWER}")),
    ],
)
def test_data_without_thoughts_train_none(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(row))
    found = load(path)
    assert [(case.thought, case.response) for case in found.cases] == [("", ANSWER)]
    assert not found.thinks
    assert "no thought" in found.notes[0]
    config = make_config("demo", {"dataset": str(path)})
    assert (config.thinks, settle_thought(config, found).thinks) == (True, False)


def test_thoughts_can_be_left_out_or_demanded(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for row in (NATIVE, chat(*PAIR), chat(*FIELD), {"prompt": QUESTION, "completion": TAGGED}):
        path.write_bytes(jsonl(row))
        found = load(path, thought="none")
        assert [(case.thought, case.response) for case in found.cases] == [("", ANSWER)]
        assert not found.thinks
        assert "which is left out" in found.notes[0]
    path.write_bytes(jsonl({"question": QUESTION, "answer": ANSWER}))
    with pytest.raises(InputError, match="--thought train: no thought in the first rows of"):
        load(path, thought="train")


def test_named_columns_beat_what_would_be_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Frage,Begründung,Antwort,question\nWarum?,So.,Ja.,no\n", encoding="utf-8")
    columns = "question=Frage,thought=Begründung,answer=Antwort"
    (case,) = load(path, columns=columns).cases
    assert (case.question, case.thought, case.response) == ("Warum?", "So.", "Ja.")
    path.write_text("Frage,Begründung,Antwort\nWarum?,,Ja.\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2, Begründung: found empty text"):
        load(path, columns=columns)
    with pytest.raises(InputError, match=r"--columns Fragen: .* has only the columns Frage, Begr"):
        load(path, columns=columns.replace("Frage", "Fragen"))


@pytest.mark.parametrize(
    "columns",
    [
        "question",
        "question=a",
        "answer=b,question=",
        "x=y",
        "question=a,answer=b,question=c",
        "messages=a,question=b,answer=c",
        "messages=a,thought=b",
        "messages=a,input=b",
        "question=a,answer=a",
    ],
)
def test_columns_that_say_nothing_are_refused(columns: str) -> None:
    with pytest.raises(
        InputError, match=r"^--columns: found .*; expected question=NAME,answer=NAME"
    ):
        build_config({"columns": columns})


AMBIGUOUS: list[tuple[dict[str, Any], str, str]] = [
    ({"question": "a", "prompt": "b", "answer": "c"}, "question=question,answer=answer", "question=prompt,answer=answer"),
    ({"question": "a", "answer": "b", "response": "c"}, "question=question,answer=answer", "question=question,answer=response"),
    ({"question": "a", "cot": "b", "reasoning": "c", "answer": "d"}, "thought=cot", "thought=reasoning"),
    (chat(*PAIR, question="a", answer="b"), "messages=messages", "question=question,answer=answer"),
    (chat(*PAIR, **NATIVE), "messages=messages", "question=Question,thought=Complex_CoT,answer=Response"),
    (NATIVE | {"answer": "B"}, "answer=Response", "answer=answer"),
    ({"messages": list(PAIR), "conversations": list(PAIR)}, "messages=messages", "messages=conversations"),
    ({"instruction": "a", "input": "b", "context": "c", "output": "d"}, "input=input", "input=context"),
    ({"question": "a", "answer": "b", "system": "c", "system_prompt": "d"}, "system=system", "system=system_prompt"),
    (chat(*PAIR, system="a", system_prompt="b"), "messages=messages,system=system", "messages=messages,system=system_prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "first", "second"), AMBIGUOUS)
def test_two_readings_are_refused_with_both(
    tmp_path: Path, row: Any, first: str, second: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(row))
    with pytest.raises(InputError, match="found two readings of its columns") as refused:
        load(path)
    assert first in str(refused.value)
    assert second in str(refused.value)
    assert str(refused.value).startswith(f"--dataset {path}, line 1: ")


def test_thoughts_in_two_places_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(chat(*PAIR), chat(*FIELD)))
    with pytest.raises(InputError, match=r"thoughts in two places: <think> tags .* and a field"):
        load(path)


ROW = jsonl({"question": "Q1?", "answer": TAGGED})
MALFORMED: list[tuple[str, str, bytes, str, str]] = [
    ("no thought in one row", "a.jsonl", ROW + jsonl({"question": "Q?", "answer": "A."}), ", line 2, answer", "no thought, unlike in the first rows"),
    ("a thought in one row", "a.jsonl", jsonl({"question": "Q?", "answer": "A."}) * 70 + ROW, ", line 71, answer", "a thought, unlike in the first rows"),
    ("thought not closed", "a.jsonl", ROW + jsonl({"question": "Q?", "answer": "<think>A."}), ", line 2, answer", "no thought, unlike"),
    ("second thought in tags", "a.jsonl", jsonl({"question": "Q?", "cot": "C.", "answer": TAGGED}), ", line 1, answer", "a second thought"),
    ("tag in the answer", "a.jsonl", jsonl({"question": "Q?", "answer": TAGGED + "</think>"}), ", line 1, answer", "the tag </think>"),
    ("a thought in a chat's own marks", "a.jsonl", jsonl({"question": "Q?", "answer": "<|channel|>analysis<|message|>T.<|end|><|start|>assistant<|channel|>final<|message|>A."}), ", line 1, answer", "the mark <|channel|> at character 1"),
    ("a chat's marks in a question", "a.jsonl", jsonl({"question": "<|im_start|>user\nQ?<|im_end|>", "answer": "A."}), ", line 1, question", "the mark <|im_start|>"),
    ("another chat's marks", "a.jsonl", jsonl({"question": "Q?", "answer": "A.<end_of_turn>"}), ", line 1, answer", "the mark <end_of_turn>"),
    ("answer missing", "a.jsonl", ROW + jsonl({"question": "Q?"}), ", line 2, answer", "only the columns question"),
    ("answer empty", "a.jsonl", ROW + jsonl({"question": "Q?", "answer": ""}), ", line 2, answer", "no thought"),
    ("answer null", "a.jsonl", jsonl({"question": "Q?", "answer": "A"}, {"question": "R?", "answer": None}), ", line 2, answer", "null; expected text"),
    ("question a number", "a.jsonl", ROW + jsonl({"question": 5, "answer": TAGGED}), ", line 2, question", "number 5"),
    ("input a list", "a.jsonl", jsonl({"instruction": "Q?", "input": ["a"], "output": "A."}), ", line 1, input", "list; expected text"),
    ("system a number", "a.jsonl", jsonl({"system": 5, "question": "Q?", "answer": "A."}), ", line 1, system", "number; expected text"),
    ("named column missing in a row", "a.jsonl", jsonl({"prompt": "Q?", "output": "A."}, {"prompt": "R?"}), ", line 2, output", "only the columns prompt"),
    ("system of a conversation a number", "a.jsonl", jsonl(chat(*PAIR, system=5)), ", line 1, system", "number; expected text"),
    ("messages empty", "a.jsonl", jsonl(chat(*PAIR), chat()), ", line 2, messages", "list without turns"),
    ("messages a text", "a.jsonl", jsonl(chat(*PAIR), {"messages": "hello"}), ", line 2, messages", "text without turns"),
    ("messages missing", "a.jsonl", jsonl(chat(*PAIR), {"other": 1}), ", line 2, messages", "only the columns other"),
    ("message a text", "a.jsonl", jsonl(chat(*PAIR), {"messages": ["hello"]}), ", line 2, messages[0]", "text; expected an object"),
    ("unknown role", "a.jsonl", jsonl(chat(*PAIR), chat(said("wizard", "Q?"))), ", line 2, messages[0]", "the role 'wizard'"),
    ("role missing", "a.jsonl", jsonl(chat(*PAIR), chat({"content": "Q?"})), ", line 2, messages[0]", "the role None"),
    ("tool's turn", "a.jsonl", jsonl(chat(*PAIR, said("tool", "x"))), ", line 1, messages[2]", "the role 'tool'"),
    ("call of a tool", "a.jsonl", jsonl(chat(PAIR[0], said("assistant", TAGGED, tool_calls=[{"id": 1}]))), ", line 1, messages[1]", "a call of a tool"),
    ("content null", "a.jsonl", jsonl(chat(*PAIR), chat(said("user", None), PAIR[1])), ", line 2, messages[0]", "null; expected a message with a text"),
    ("content blank", "a.jsonl", jsonl(chat(*PAIR), chat(said("user", " "), PAIR[1])), ", line 2, messages[0]", "empty text"),
    ("picture", "a.jsonl", jsonl(chat(said("user", [{"type": "image"}]), PAIR[1])), ", line 1, messages[0]", "list; expected a message"),
    ("assistant first", "a.jsonl", jsonl(chat(PAIR[1], *PAIR)), ", line 1, messages[0]", "a turn of the assistant; expected the user's"),
    ("user twice", "a.jsonl", jsonl(chat(PAIR[0], *PAIR)), ", line 1, messages[1]", "a turn of the user; expected the assistant's"),
    ("system in the middle", "a.jsonl", jsonl(chat(*PAIR, said("system", "x"), *PAIR)), ", line 1, messages[2]", "a turn of the system"),
    ("user last", "a.jsonl", jsonl(chat(*PAIR, PAIR[0])), ", line 1, messages[2]", "ends with the user's turn"),
    ("system alone", "a.jsonl", jsonl(chat(*PAIR), chat(said("system", "x"))), ", line 2, messages", "no turn of the assistant"),
    ("control character in a system prompt", "a.jsonl", jsonl(chat(said("system", "a\x00"), *PAIR)), ", line 1, system turn", "U+0000"),
    ("control character in an earlier turn", "a.jsonl", jsonl(chat(said("user", "a\x1b"), said("assistant", "b"), *PAIR)), ", line 1, user turn", "U+001B"),
    ("a thousand turns", "a.jsonl", jsonl(chat(*PAIR), chat(*PAIR * 501)), ", line 2, messages", "1,002 turns; expected a list of 1 to 1,000"),
    ("a system prompt after the first rows", "a.jsonl", jsonl(NATIVE) * 70 + jsonl(NATIVE | {"system": "s"}), ", line 71, system", "a column that the first rows have not"),
    ("an input after the first rows", "a.jsonl", ROW * 70 + jsonl({"question": "Q?", "input": "i", "answer": TAGGED}), ", line 71, input", "a column that the first rows have not"),
    ("a thought's column after the first rows", "a.jsonl", jsonl({"question": "Q?", "answer": "A."}) * 70 + jsonl({"question": "R?", "cot": "C.", "answer": "A."}), ", line 71, cot", "a column that the first rows have not"),
    ("a thought's column beside messages", "a.jsonl", jsonl(chat(said("user", "Q?"), said("assistant", "A."), cot="C.")), ", line 1", "thoughts in the column cot, beside messages; put them into the messages"),
    ("a thought beside messages later", "a.jsonl", jsonl(chat(*PAIR, cot=None)) * 70 + jsonl(chat(*PAIR, cot="C.")), ", line 71, cot", "a text in a column"),
    ("an empty column of thoughts that is named", "a.jsonl", jsonl(NATIVE | {"Complex_CoT": ""}), ", line 1, Complex_CoT", "empty text"),
    ("a history", "a.jsonl", jsonl({"instruction": "Q?", "output": "A.", "history": [["P?", "O."]]}), ", line 1, history", "earlier turns"),
    ("two thoughts of a turn", "a.jsonl", jsonl(chat(*PAIR)) * 70 + jsonl(chat(PAIR[0], said("assistant", TAGGED, reasoning="R."))), ", line 71, messages[1]", "a second thought"),
    ("two thoughts that differ", "a.jsonl", jsonl(chat(PAIR[0], said("assistant", ANSWER, reasoning="R.", thinking="T."))), ", line 1, messages[1]", "two thoughts that differ, in reasoning and thinking"),
    ("a thought as a part of the answer", "a.jsonl", jsonl(chat(PAIR[0], said("assistant", [{"type": "reasoning", "text": "R."}, {"type": "text", "text": ANSWER}]))), ", line 1, messages[1]", "list; expected a message"),
    ("call of a function", "a.jsonl", jsonl(chat(PAIR[0], said("assistant", TAGGED, function_call={"name": "f"}))), ", line 1, messages[1]", "a call of a tool"),
    ("a last turn of no weight", "a.jsonl", jsonl(chat(PAIR[0], said("assistant", TAGGED, weight=0))), ", line 1, messages[1]", "a weight of 0"),
    ("messages as Python prints them", "a.csv", b"messages\n\"[{'role': 'user', 'content': 'Q?'}]\"\n", ", line 1", "messages in messages as Python prints them; write them as JSON"),
    ("a prompt as Python prints it", "a.csv", b"prompt,completion\n\"[{'content': 'Q?', 'role': 'user'}]\",A.\n", ", line 1", "messages in prompt as Python prints them"),
    ("messages as an answer", "a.jsonl", jsonl({"prompt": "Q?", "completion": json.dumps([PAIR[1]])}), ", line 1", "messages in completion as the answer"),
    ("our own columns and options", "a.jsonl", jsonl(NATIVE | {"options": ["a", "b"]}), ", line 1", "multiple-choice questions"),
    ("another Windows encoding", "a.csv", "question;answer\nŁódź, źródło bólu?;Ból głowy są częste\n".encode("cp1250"), ", line 2, question", "byte 0xa3"),
    ("gzip cut off", "a.jsonl.gz", gzip.compress(ROW * 99)[:-9], "", "damaged gzip data"),
    ("gzip that is none", "a.jsonl.gz", ROW, "", "no gzip data"),
    ("zstd that is none", "a.csv.zst", b"question,answer\na,b\n", "", "no zstd data"),
    ("zstd cut off", "a.jsonl.zst", bytes(pa.compress(ROW * 99, codec="zstd", asbytes=True))[:-5], "", "damaged zstd data"),
    ("broken JSON within gzip", "a.jsonl.gz", gzip.compress(ROW + b"{"), ", line 2, row", "broken JSON"),
    ("gzip of a Parquet file", "a.parquet.gz", gzip.compress(b"PAR1"), "", "the extension '.gz'"),
    ("two separators", "a.csv", b"question,a;answer,b\nx,y;z,w\n", ", line 1", "two separators that fit: ',' (question / a;answer / b) and ';'"),
    ("semicolons and a cell too few", "a.csv", b"question;answer\na;b\nc\n", ", line 3, row", "1 cells; expected 2"),
    ("UTF-16 with a lone surrogate", "a.csv", b"\xff\xfe" + "question\tanswer\nWhy?\tYes".encode("utf-16-le") + b"\x00\xd8", ", line 2, answer", "U+FFFD"),
    ("Arrow that is none", "a.arrow", b"nothing of the kind", ", row 1", "damaged Arrow data"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "where", "says"),
    [case[1:] for case in MALFORMED],
    ids=[case[0].replace(" ", "-") for case in MALFORMED],
)
def test_malformed_rows_are_refused_in_one_line_that_names_file_row_and_field(
    tmp_path: Path, name: str, content: bytes, where: str, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        load(path)
    message = str(refused.value)
    assert message.startswith(f"--dataset {path}{where}: found ")
    assert says in message
    assert message.isprintable()


TURNS = (
    said("system", "Be brief."), said("user", "Who?"), said("assistant", "<think>U.</think>You."),
    said("user", QUESTION), said("assistant", TAGGED),
)  # fmt: skip


def test_the_last_turn_is_trained_and_the_earlier_ones_are_its_prompt(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(chat(*TURNS, id="x")))
    (case,) = load(path).cases
    assert (case.id, case.question, case.thought, case.response) == ("x", QUESTION, THOUGHT, ANSWER)
    earlier = (Turn("system", "Be brief."), Turn("user", "Who?"), Turn("assistant", "You."))
    assert case.turns == earlier


@pytest.mark.parametrize(
    "row",
    [
        NATIVE,
        {"prompt": QUESTION, "completion": TAGGED},
        {"prompt": [PAIR[0]], "completion": [PAIR[1]]},
        chat(*PAIR),
        sharegpt(("human", QUESTION), ("gpt", TAGGED)),
    ],
)
def test_a_system_prompt_in_a_column_of_its_own_is_kept(tmp_path: Path, row: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(row | {"system": "Be brief."}))
    found = load(path)
    (case,) = found.cases
    assert (case.question, case.thought, case.response) == (QUESTION, THOUGHT, ANSWER)
    assert case.turns == (Turn("system", "Be brief."),)
    assert "system prompt from system" in found.notes[0]


def test_each_turn_is_trained_where_all_are_wanted_and_all_fall_to_one_part(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [chat(TURNS[0], said("user", f"Who {n}?"), *TURNS[2:]) for n in range(40)]
    path.write_bytes(jsonl(*rows))
    config = make_config("demo", {"dataset": str(path), "train_turns": "all"})
    found = load_dataset(config)
    assert [case.id for case in found.cases[:3]] == ["row-1/1", "row-1/2", "row-2/1"]
    assert [case.thought for case in found.cases[:2]] == ["U.", THOUGHT]
    assert [len(case.turns) for case in found.cases[:2]] == [1, 3]
    assert len(found.cases) == 80
    assert "every turn of the assistant" in found.notes[0]
    split = split_cases(found.cases, config)
    for part in (split.train, split.test, split.validation):
        assert all(f"{row_id.partition('/')[0]}/{n}" in part for row_id in part for n in "12")
    assert unit_hash(found.cases[0]) == unit_hash(found.cases[1]) == unit_hash("Who 0?")


def test_a_turn_without_a_thought_among_others_is_trained_without_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(chat(said("user", "Who?"), said("assistant", "You."), *TURNS[3:])))
    assert [case.thought for case in load(path, train_turns="all").cases] == ["", THOUGHT]
    assert [case.thought for case in load(path).cases] == [THOUGHT]


def test_what_stands_beside_messages_may_come_late(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(*(chat(*PAIR, id=n) for n in range(70)), chat(*TURNS, prompt="Who?")))
    assert len(load(path).cases) == 2


def test_a_turn_of_no_weight_is_a_prompt_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = (said("user", "Who?"), said("assistant", "You.", weight=0))
    path.write_bytes(jsonl(chat(*first, said("user", QUESTION), said("assistant", ANSWER))))
    (case,) = load(path, train_turns="all").cases
    assert (case.id, case.response, len(case.turns)) == ("row-1", ANSWER, 2)


def test_the_same_question_after_another_system_prompt_is_a_row_if_its_answer_differs(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    answers = [("S1", "A."), ("S2", "B."), ("S3", "A."), ("S2", "C."), (None, "D."), (None, "E.")]
    path.write_bytes(
        jsonl(*({"system": one, "question": "Q?", "answer": said} for one, said in answers))
    )
    found = load(path)
    assert [case.id for case in found.cases] == ["row-1", "row-2", "row-5"]
    assert [(one.id, str(one.reason)) for one in found.dropped] == [
        ("row-3", "same question as row-1, and answer"),
        ("row-4", "same question as row-2, with another answer"),
        ("row-6", "same question as row-5, with another answer"),
    ]
    assert len(set(found.cases.unit_hashes)) == 1


def test_the_same_question_after_other_turns_is_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first, second = (
        chat(said("user", f"I am {name}."), said("assistant", "Hello."), *PAIR)
        for name in ("Ann", "Bob")
    )
    path.write_bytes(jsonl(first, second, first))
    found = load(path)
    assert [case.id for case in found.cases] == ["row-1", "row-2"]
    assert [str(one.reason) for one in found.dropped] == ["same question as row-1, and answer"]


TABLE = [("question", "cot", "answer")] + [
    (f"Why {n}, “x” für Größe?", "It's so;", "Yes\tand, no é") for n in range(3)
]


def table(delimiter: str, *, end: str = "\r\n") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator=end).writerows(TABLE)
    return file.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "mac_roman"]
)
def test_tables_as_spreadsheets_write_them_give_the_same_rows(
    tmp_path: Path, delimiter: str, encoding: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(table(delimiter).encode(encoding))
    found = load(path)
    assert [(case.question, case.response) for case in found.cases] == [
        (q, a) for q, _, a in TABLE[1:]
    ]
    told = {"cp1252": "Windows-1252", "mac_roman": "Mac OS Roman"}.get(encoding, "UTF-16")
    assert encoding.startswith("utf-8") or f"decoded from {told}" in found.notes[0]


def test_a_chinese_spreadsheet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    text = "问题,思考,答案\n患者为什么发烧？,可能是感染。,先查血。\n"
    path.write_bytes(text.encode("gbk"))
    (case,) = load(path, language="zh").cases
    assert (case.question, case.response) == ("患者为什么发烧？", "先查血。")


def test_tabs_by_name_and_compressed_files_give_the_same_rows(tmp_path: Path) -> None:
    rows = [dict(zip(TABLE[0], row, strict=True)) for row in TABLE[1:]]
    contents = {
        "a.tsv": table("\t").encode(),
        "a.jsonl.gz": gzip.compress(jsonl(*rows)),
        "a.NDJSON": jsonl(*rows),
        "a.json.zst": pa.compress(json.dumps(rows).encode(), codec="zstd", asbytes=True),
        "b.jsonl.zst": pa.compress(jsonl(*rows), codec="zstd", asbytes=True),
        "a.csv.gz": gzip.compress(table(";").encode("cp1252")),
    }
    prints: set[str] = set()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        prints.add(load(tmp_path / name).fingerprint)
    assert len(prints) == 1


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_file_that_unpacks_to_far_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(streams, "LARGEST_UNPACKED", 1 << 20)
    content = jsonl({"question": "Q?", "answer": "A" * 3_000_000})
    packed = (
        gzip.compress(content)
        if suffix == "gz"
        else pa.compress(content, codec="zstd", asbytes=True)
    )
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(packed)
    with pytest.raises(
        InputError, match="unpacks to over 1,048,576 bytes; expected texts, at most 200"
    ):
        load(path)


def arrow(path: Path, rows: list[dict[str, Any]] | Any, **options: Any) -> None:
    data = pa.Table.from_pylist(rows) if isinstance(rows, list) else rows
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_stream(sink, data.schema, **options) as writer,
    ):
        writer.write_table(data)


def test_a_saved_arrow_folder_and_its_splits_are_read(tmp_path: Path) -> None:
    from datasets import Dataset as Saved
    from datasets import DatasetDict

    rows = [
        chat(said("user", f"Q{n}?"), said("assistant", "A.", reasoning_content="T."))
        for n in range(4)
    ]
    saved = Saved.from_list(rows)
    saved.save_to_disk(str(tmp_path / "one"), num_shards=2)
    DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "two"))
    for name in ("one", "two"):
        assert [case.question for case in load(tmp_path / name).cases] == [
            "Q0?",
            "Q1?",
            "Q2?",
            "Q3?",
        ]
    assert f"{tmp_path / 'two'}: not read: test" in load(tmp_path / "two").notes
    DatasetDict({"a": saved, "b": saved}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(InputError, match="the splits a, b; name the folder of one of them"):
        load(tmp_path / "none")
    (tmp_path / "one" / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises(InputError, match="not as datasets writes it"):
        load(tmp_path / "one")


def test_arrow_that_could_grow_is_refused_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    arrow(
        path,
        [{"question": "Q?", "answer": "A."}],
        options=pa.ipc.IpcWriteOptions(compression="zstd"),
    )
    with pytest.raises(InputError, match="compressed Arrow data"):
        load(path)
    arrow(path, pa.table({"question": pa.nulls(2**31 - 1)}))
    with pytest.raises(InputError, match="2,147,483,647 rows in 0 bytes"):
        load(path)
    huge = pa.ListArray.from_arrays(pa.array([0, 2**30], pa.int32()), pa.nulls(2**30))
    arrow(path, pa.table({"question": ["Q?"], "answer": ["A."], "huge": huge}))
    assert [case.response for case in load(path).cases] == ["A."]


def test_a_folder_is_read_as_one_set_whatever_its_files_are(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(jsonl({"question": "Q1?", "answer": TAGGED}))
    (folder / "b.csv").write_text("prompt;cot;response\nQ2?;T;A\nQ1?;T;A\n")
    (folder / "README.md").write_text("nothing")
    (folder / ".hidden.jsonl").write_text("nothing")
    (folder / "dataset_info.json").write_text("{}")
    (folder / "c.xlsx").write_text("nothing")
    (folder / "more").mkdir()
    found = load(folder)
    assert f"{folder}: not read: c.xlsx, more" in found.notes
    assert [(case.id, case.question) for case in found.cases] == [
        ("row-1", "Q1?"),
        ("row-2", "Q2?"),
    ]
    assert [one.id for one in found.dropped] == ["row-3"]
    for path in folder.glob("*.*"):
        path.unlink()
    with pytest.raises(
        InputError, match=r"found a folder without data files; expected some .jsonl,"
    ):
        load(folder)


def test_the_files_of_a_folder_are_opened_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may often open 1,024 files; a folder may have 10,000."""
    opened, read = [0], dataset.read_file

    def counted(path: Path) -> Iterator[SourceRow]:
        opened.append(opened[-1] + 1)
        yield from read(path)
        opened.append(opened[-1] - 1)

    monkeypatch.setattr(dataset, "read_file", counted)
    for n in range(3):
        rows = ({"question": f"Q{n} {at}?", "answer": TAGGED} for at in range(HEAD_ROWS + 1))
        (tmp_path / f"{n}.jsonl").write_bytes(jsonl(*rows))
    assert len(load(tmp_path).cases) == 3 * (HEAD_ROWS + 1)
    assert opened == [0, 1, 0, 1, 0, 1, 0]


def test_several_data_sets_are_one(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_bytes(jsonl({"id": 1, "question": "Q1?", "answer": TAGGED}))
    second.write_bytes(
        jsonl(
            {"id": 1, "prompt": "Q2?", "completion": TAGGED},
            {"prompt": "Q1?", "completion": TAGGED},
        )
    )
    config = build_config({"dataset": [str(first), str(second), "sample-short"]})
    assert config.dataset == f"{first} + {second} + sample-short"
    found = load_dataset(config)
    assert [case.id for case in found.cases[:3]] == ["1", "2:1", f"3:{found.cases[2].id[2:]}"]
    assert len(found.cases) == 110
    assert not found.synthetic
    second.write_bytes(jsonl({"prompt": "Q2?", "completion": "A."}))
    with pytest.raises(
        InputError, match=r"a.jsonl has thoughts, b.jsonl has none; use .*--thought none"
    ):
        load_dataset(config)
    assert not load_dataset(config.model_copy(update={"thought": "none"})).thinks


def test_large_files_of_other_layouts_come_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medcot.data import case_list

    monkeypatch.setenv("MEDCOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(case_list, "IN_MEMORY", 300)
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        jsonl(*(chat(TURNS[0], said("user", f"Who {n}?"), *TURNS[2:]) for n in range(9)))
    )
    before = load(path)
    monkeypatch.setattr(dataset, "validate_rows", None)
    after = load(path)
    assert (list(after.cases), after.notes, after.thinks) == (
        list(before.cases),
        before.notes,
        True,
    )
    assert after.cases[0].turns[0] == Turn("system", "Be brief.")


FORMATS = {
    "alpaca.json": (6, True), "alpaca_no_thought.jsonl": (6, False), "bom_crlf.csv": (6, True),
    "excel_utf16.csv": (6, True), "messages.jsonl": (6, True), "messages_two_turns.jsonl": (5, True),
    "prompt_completion.jsonl": (6, True), "question_answer.jsonl": (6, False),
    "rows.jsonl.gz": (6, True), "semicolon.csv": (6, True), "sharegpt.jsonl": (6, True),
}  # fmt: skip


def test_real_files_of_each_format_are_recognised(dev_data: Path) -> None:
    folder = dev_data / "formats"
    for name, expected in FORMATS.items():
        found = load(folder / name)
        assert (len(found.cases), found.thinks) == expected, name
        assert not found.dropped
    columns = "question=Frage,thought=Begruendung,answer=Antwort"
    assert len(load(folder / "other_names.jsonl", columns=columns).cases) == 6
    assert len(load(folder / "messages_two_turns.jsonl", train_turns="all").cases) == 10
    questions = {case.question for case in load(folder / "rows.jsonl.gz").cases}
    for name in ("alpaca.json", "excel_utf16.csv", "sharegpt.jsonl", "prompt_completion.jsonl"):
        assert {case.question for case in load(folder / name).cases} == questions, name


def test_the_examples_of_the_documentation_give_the_same_case(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = [json.loads(one) for one in re.findall(r"```json\n(\{.*\})\n```", page)]
    questions = [row for row in rows if "metal" in row.get("question", "")]
    for row in questions:
        (tmp_path / "q.jsonl").write_bytes(jsonl(row))
        (question,) = load_questions(str(tmp_path / "q.jsonl"), "en").questions
        assert question.options == {"A": "Wood", "B": "Iron", "C": "Tea"}, row
        assert question.answer == "B"
    cases = [row for row in rows if row not in questions]
    assert len(questions) >= 4
    assert len(cases) >= 8
    for number, row in enumerate(cases):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(jsonl(row))
        columns = "question=Frage,thought=Grund,answer=Antwort" if "Frage" in row else ""
        (case,) = load(path, columns=columns).cases
        found = (case.question, case.thought, case.response)
        assert found == ("Why do I cough?", "A cold is likely.", "You have a cold."), row
