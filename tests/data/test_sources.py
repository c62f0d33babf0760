"""Multiple-choice questions from files, samples and known sets; what source names mean."""

# Tables of layouts are read by their rows.
# ruff: noqa: E501

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medcot.config.presets import make_config
from medcot.data.inspection import inspect_dataset
from medcot.data.mcq import load_questions
from medcot.data.mcq_catalog import BENCHMARKS
from medcot.data.sources import kind_of
from medcot.errors import InputError

OPTIONS = {"A": "Iron", "B": "Zinc", "C": "Lead"}


def question(**changes: Any) -> dict[str, Any]:
    base = {"question": "Which metal?", "options": OPTIONS, "answer_idx": "B", "answer": "Zinc"}
    return {k: v for k, v in (base | changes).items() if v is not ...}


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


MALFORMED: list[tuple[str, dict[str, Any] | str, str, str]] = [
    ("no question", question(question=...), "question", "only the columns options"),
    ("empty question", question(question=" "), "question", "empty text"),
    ("broken question", question(question="caf\ufffd"), "question", "U+FFFD"),
    ("no options", question(options=...), "options", "no such field"),
    ("options as a list", question(options=["Iron", "Zinc"]), "options", "list"),
    ("one option", question(options={"A": "Iron"}, answer_idx="A"), "options", "1 options"),
    ("small letters", question(options={"a": "Iron", "b": "Zinc"}), "options", "letter 'a'"),
    ("empty option", question(options=OPTIONS | {"C": ""}), "options", "option C without"),
    ("number as option", question(options=OPTIONS | {"C": 5}), "options", "C: number 5; expected"),
    (
        "options as text",
        question(options=json.dumps(OPTIONS)),
        "options",
        "in a table: columns A, B",
    ),
    ("broken option", question(options=OPTIONS | {"C": "a\0"}), "options C", "U+0000"),
    ("no answer", question(answer_idx=...), "answer_idx", "no such field"),
    (
        "answer not an option",
        question(answer_idx="D"),
        "answer_idx",
        "'D'; expected one of A, B, C",
    ),
    ("answer as a number", question(answer_idx=1), "answer_idx", "1; expected one of"),
    ("answer as a list", question(answer_idx=["A"]), "answer_idx", "['A']"),
    ("texts contradict", question(answer="Iron"), "answer", "option B says otherwise"),
    ("wrong language", question(lang="fr"), "lang", "'fr'"),
    ("context as a list", question(context=["a"]), "context", "list"),
    ("same id", question(id="x"), "id", "'x', which an earlier row has"),
    ("broken JSON", '{"question": ', "row", "broken JSON"),
]


@pytest.mark.parametrize(
    ("bad", "field", "says"),
    [case[1:] for case in MALFORMED],
    ids=[case[0].replace(" ", "-") for case in MALFORMED],
)
def test_malformed_question_is_refused_with_file_line_and_field(
    tmp_path: Path, bad: dict[str, Any] | str, field: str, says: str
) -> None:
    path = write(tmp_path / "q.jsonl", question(id="x"), bad)
    with pytest.raises(InputError) as refusal:
        load_questions(str(path), "en")
    assert str(refusal.value).startswith(f"--mcq {path}, line 2, {field}: found ")
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("unfit", "says"),
    [
        (question(question="Which metal ?"), "question: found the question and options of {first}"),
        (question(options=OPTIONS | {"C": "Zinc "}), "options: found the right answer under B and"),
    ],
    ids=["asked twice", "two right letters"],
)
def test_a_question_that_cannot_be_scored_fairly_is_left_out_and_said(
    tmp_path: Path, unfit: dict[str, Any], says: str
) -> None:
    path = write(tmp_path / "q.jsonl", question(id="x"), unfit)
    found = load_questions(str(path), "en")
    assert [kept.id for kept in found.questions] == ["x"]
    assert f"; 1 of 2 questions of {path} left out, the first: {path}, line 2, " in found.note
    assert says.format(first=f"{path}, line 1") in found.note


def test_equal_wrong_options_are_no_reason_to_leave_a_question_out(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", question(options=OPTIONS | {"C": "Iron"}))
    found = load_questions(str(path), "en")
    assert (len(found.questions), "left out" in found.note) == (1, False)


def test_further_problems_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", question(question=""), question(answer_idx="Z"))
    with pytest.raises(InputError, match="and 1 more: medcot data"):
        load_questions(str(path), "en")


@pytest.mark.parametrize("name", ["medqua", "owner/name", "smaple", "q.xlsx", "nowhere.jsonl"])
def test_an_unknown_set_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"^--mcq {name}: (unknown set|no such file); expected "):
        load_questions(name, "en")


def test_a_mistyped_known_set_is_named() -> None:
    with pytest.raises(InputError, match="did you mean 'medqa'"):
        load_questions("medqua", "en")


def test_a_file_gives_questions_with_their_context_and_own_language(tmp_path: Path) -> None:
    rows = [question(id="a", lang="zh", context="Known: x.", source="s"), question(answer=...)]
    first, second = load_questions(str(write(tmp_path / "q.jsonl", *rows)), "en").questions
    assert (first.id, first.language, first.context, first.source) == ("a", "zh", "Known: x.", "s")
    assert (second.id, second.language, second.answer) == ("row-2", "en", "B")
    assert second.options == OPTIONS


def test_letters_that_parquet_fills_in_are_no_options(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [question(), question(options={"A": "x", "B": "y"}, answer="y")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    _, second = load_questions(str(tmp_path / "q.parquet"), "en").questions
    assert second.options == {"A": "x", "B": "y"}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_samples_have_24_questions_or_more(language: Any) -> None:
    questions = load_questions("sample", language).questions
    assert len(questions) >= 24
    assert {q.language for q in questions} == {language}
    assert len({q.id for q in questions}) == len(questions)
    letters = [q.answer for q in questions]
    assert max(letters.count(letter) for letter in set(letters)) <= len(letters) / 2


ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "medqa": (
        question(meta_info="step1", metamap_phrases=["x"]),
        {"answer": "B", "options": OPTIONS},
    ),
    "medmcqa": (
        {"id": "u1", "question": "Which metal?", "opa": "Iron", "opb": "Zinc", "opc": "Lead"}
        | {"opd": "Tin", "cop": 3, "choice_type": "single", "exp": None},
        {"id": "u1", "answer": "D", "options": OPTIONS | {"D": "Tin"}},
    ),
    "pubmedqa": (
        {"pubid": 7, "question": "Does it?", "context": {"contexts": ["One.", "Two."]}}
        | {"long_answer": "It does.", "final_decision": "no"},
        {"id": "7", "answer": "B", "context": "One.\nTwo."}
        | {"options": {"A": "yes", "B": "no", "C": "maybe"}},
    ),
    "mmlu-medical": (
        {"question": "Which metal?", "subject": "anatomy", "answer": 0}
        | {"choices": ["Iron", "Zinc"]},
        {"answer": "A", "options": {"A": "Iron", "B": "Zinc"}},
    ),
    "medqa-mcmle": (
        {"meta_info": "", "question": "哪种金属？", "answer_idx": "C", "answer": "铅"}
        | {"options": [{"key": "A", "value": "铁"}, {"key": "C", "value": "铅"}]},
        {"answer": "C", "language": "zh", "options": {"A": "铁", "C": "铅"}},
    ),
    "cmexam": (
        {"Question": "哪种金属？", "Answer": "A", "Explanation": "因为。"}
        | {"Options": [{"key": "A", "value": "铁"}, {"key": "B", "value": "锌"}]},
        {"answer": "A", "language": "zh", "options": {"A": "铁", "B": "锌"}},
    ),
}  # fmt: skip
"""A row of each known set as its data card describes it, and what must come of it."""


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_of_known_sets_become_questions(name: str, tmp_path: Path) -> None:
    from medcot.data.mcq import validate_questions
    from medcot.data.readers import SourceRow

    raw, expected = ROWS[name]
    values = BENCHMARKS[name].convert(raw)
    assert values is not None
    found = validate_questions([SourceRow(1, "row 1", values)], BENCHMARKS[name].language)
    assert not found.faults
    (made,) = found.questions
    assert {field: getattr(made, field) for field in expected} == expected


def test_rows_without_a_single_known_answer_are_left_out_by_design() -> None:
    assert BENCHMARKS["cmexam"].convert(ROWS["cmexam"][0] | {"Answer": "ABD"}) is None
    assert BENCHMARKS["medmcqa"].convert(ROWS["medmcqa"][0] | {"cop": -1}) is None


@pytest.mark.parametrize(
    "name",
    ["medqa_en", "medmcqa_en", "pubmedqa_en", "mmlu_medical_en", "medqa_mcmle_zh", "cmexam_zh"],
)
def test_real_question_files_are_valid(dev_data: Path, name: str) -> None:
    questions = load_questions(str(dev_data / f"mcq_{name}.jsonl"), "en").questions
    assert len(questions) >= 199
    assert {q.language for q in questions} == {name[-2:]}


def test_inspection_tells_questions_from_cases(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", question(), question(answer_idx="Z"))
    found = inspect_dataset(make_config("demo", {"dataset": str(path)}))
    assert (found.kind, found.rows, found.kept) == ("questions", 2, 1)
    assert [(p.where, p.field) for p in found.problems] == [(f"{path}, line 2", "answer_idx")]
    assert found.example["options"] == "A. Iron; B. Zinc; C. Lead"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sample", "sample"),
        ("FreedomIntelligence/medical-o1-reasoning-SFT", "hub"),
        ("data/rows.jsonl", "file"),
        ("rows.CSV", "file"),
        ("data/rows.txt", "file"),
    ],
)
def test_what_a_name_means(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_a_folder_named_like_a_hub_name_is_taken_for_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner/name").mkdir(parents=True)
    assert kind_of("owner/name") == "file"


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"Permission denied; expected a readable folder"):
        load_questions(str(tmp_path), "en")


def test_the_data_modules_load_nothing_heavy() -> None:
    code = (
        "import sys, medcot.data.inspection, medcot.data.contamination\n"
        "heavy = {'torch', 'datasets', 'pyarrow', 'pandas', 'huggingface_hub', 'httpx'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def mcq(**values: Any) -> dict[str, Any]:
    return {"question": "Which metal is in haemoglobin?", **values}


COLUMNS = {"opa": "Iron", "opb": "Zinc", "opc": "Lead"}
SAME: list[tuple[str, list[dict[str, Any]]]] = [
    ("answer_idx as a number counted from 0", [mcq(options=["Iron", "Zinc"], answer_idx=0)]),
    ("label as a number counted from 1", [mcq(options=["Iron", "Zinc", "Lead"], label=1), mcq(question="Which is grey?", options=["Tea", "Milk", "Lead"], label=3)]),
    ("answer as the text of an option", [mcq(options=["Zinc", "Iron"], answer="Iron ")]),
    ("answer as a letter or key", [mcq(options={"a": "Zinc", "b": "Iron"}, answer="b")]),
    ("answer as a letter or key", [mcq(options={"1": "Zinc", "2": "Iron"}, answer="2")]),
    ("answerKey as a letter or key", [mcq(choices={"label": ["A", "B"], "text": ["Zinc", "Iron"]}, answerKey="B")]),
    ("answer as a letter or key", [mcq(options=[{"key": "A", "value": "Iron"}, {"key": "B", "value": "Tin"}], answer="(A)")]),
    ("options from opa, opb, opc, answer from cop as a number counted from 0", [mcq(**COLUMNS, cop=0)]),
    ("options from A, B, C, answer from correct", [mcq(A="Iron", B="Zinc", C="", correct="a")]),
    ("options from Option 1, Option 2, answer from Answer", [{"Question": "Which?", "Option 1": "Zinc", "Option 2": "Iron", "Answer": "Iron"}]),
    ("options from options", [mcq(options=json.dumps(["Zinc", "Iron"]), answer="B")]),
    ("answer as a letter or key", [mcq(options={"1": "Zinc", "2": "Iron", "3": "Tin"}, answer=2)]),
    ("answer as a letter or key", [mcq(options={"0": "Zinc", "1": "Tin", "2": "Iron"}, answer="2")]),
    ("answer as a letter or key", [mcq(option_1="Zinc", option_2="Iron", option_3="Tin", answer=2)]),
    ("answer as a letter or key", [mcq(option_a="Zinc", option_b="Iron", answer="option_b")]),
    ("answer as a letter or key", [mcq(options=["Zinc", "Iron"], answer="B. Iron")]),
    ("答案 as a letter or key", [mcq(options=["Zinc", "Iron"], 答案="Ｂ")]),
    ("answer as a letter or key", [mcq(options=["A. Zinc", "B. Iron"], answer="B")]),
    ("answer as a letter or key", [mcq(options=["B) Iron", "A) Zinc"], answer="B. Iron")]),
    ("not used: passage", [mcq(options=["Zinc", "Iron"], answer="B", passage="Blood is red.")]),
    ("options from options, answer from answer_idx", [mcq(options={"A": "Iron", "B": "Tin"}, answer_idx="A", answer="A")]),
    ("options from options", [mcq(options=[f"x{n}" for n in range(9)] + ["Iron"], answer="J")]),
]  # fmt: skip


@pytest.mark.parametrize(("says", "rows"), SAME, ids=range(len(SAME)))
def test_questions_in_other_layouts_are_recognised(tmp_path: Path, says: str, rows: Any) -> None:
    found = load_questions(str(write(tmp_path / "q.jsonl", *rows)), "en")
    first = found.questions[0]
    assert first.options[first.answer] == "Iron"
    assert list(first.options) == list("ABCDEFGHIJ"[: len(first.options)])
    assert says in found.note
    assert found.note.startswith(f"{tmp_path / 'q.jsonl'}: read as multiple choice: options from ")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([mcq(options=["Tin", "Iron", "Zinc"], answer=1)], "answer as a number counted from 0, or answer as a number counted from 1"),
        ([mcq(options=["2", "1"], answer="2"), mcq(options=["1", "2"], answer="1")], "as the text of an option, or"),
        ([mcq(options=["Tin", "Iron"], answer="A", label="Iron")], "answer as a letter or key, or label as the text"),
        ([mcq(options=["Tin", "Iron"], choices=["Iron", "Tin"], answer="A")], "the options from options or choices"),
        ([mcq(prompt="What?", options=["a", "b"], answer="A")], "the question from question or prompt"),
    ],
)  # fmt: skip
def test_two_readings_of_questions_are_refused(tmp_path: Path, rows: Any, says: str) -> None:
    with pytest.raises(InputError, match="found two readings") as refused:
        load_questions(str(write(tmp_path / "q.jsonl", *rows)), "en")
    assert says in str(refused.value)


@pytest.mark.parametrize("first", ["answer", "answer_idx"])
def test_a_row_whose_two_answers_contradict_is_refused(tmp_path: Path, first: str) -> None:
    given = [("Iron", "B"), ("Lead", "C"), ("Tin", "C")]
    rows = [
        dict(
            sorted({"answer": text, "answer_idx": letter}.items(), key=lambda one: one[0] != first)
        )
        | {"question": f"Question {n}?", "options": ["Tin", "Iron", "Lead"]}
        for n, (text, letter) in enumerate(given)
    ]
    with pytest.raises(InputError, match=r"line 3, answer: found 'Tin', but option C says other"):
        load_questions(str(write(tmp_path / "q.jsonl", *rows)), "en")


def test_a_second_answer_column_that_is_not_in_every_row_is_compared_too(tmp_path: Path) -> None:
    rows = [
        mcq(question=f"Question {n}?", options=["Tin", "Iron", "Lead"], answer_idx=letter)
        for n, letter in enumerate("ABCAB")
    ]
    for row, number in zip(rows, [0, 1, 1, None, 1], strict=True):
        row["label"] = number
    path = str(write(tmp_path / "q.jsonl", *rows))
    with pytest.raises(
        InputError, match=r"line 3: found answer_idx as .* answer in label; correct"
    ):
        load_questions(path, "en")
    for row in rows:
        row["label"] = 1 if row is not rows[0] else None  # about something else
    assert len(load_questions(str(write(tmp_path / "q.jsonl", *rows)), "en").questions) == 5


def test_two_columns_of_which_either_may_be_the_answer_are_refused(tmp_path: Path) -> None:
    rows = [
        mcq(
            question=f"Question {n}?",
            options=["yes", "no", "maybe"],
            label=n % 3,
            gold=n % 3 * (n < 8),
        )
        for n in range(9)
    ]
    with pytest.raises(InputError, match=r"label as .* or gold as .* line 9; leave one of the col"):
        load_questions(str(write(tmp_path / "q.jsonl", *rows)), "en")


def test_a_second_column_that_agrees_decides_between_two_readings(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", mcq(options=["Tin", "Iron", "Zinc"], cop=1, answer="Iron"))
    (question,) = load_questions(str(path), "en").questions
    assert question.answer == "B"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (mcq(options=["a", "b"], answer="Z"), "line 2, answer: found 'Z'; expected one of A, B"),
        (mcq(options=["a", "b"], answer=None), "line 2, answer: found None; expected one of A, B"),
        (mcq(options=["a"], answer="A"), "line 2, options: found 1 options; expected two to 10"),
        (
            mcq(options=list("abcdefghijk"), answer="A"),
            "options: found 11 options; expected two to 10",
        ),
        (
            mcq(options=["a", "b"], answer=["A", "B"]),
            "answer: found ['A', 'B']; expected one of A, B",
        ),
        (
            mcq(options=["A. a", "B. b"], answer="A. b"),
            "answer: found 'A. b'; expected one of A, B",
        ),
        (
            mcq(options={"label": ["A", "B", "C"], "text": ["a", "b"]}, answer="B"),
            "options: found the letter 'label'",
        ),
        (mcq(options=["a", 5], answer="A"), "options: found option B: number 5"),
        (mcq(options=["a", ""], answer="A"), "options: found option B without a text"),
        (mcq(options="none", answer="A"), "options: found text; expected an object"),
        ({"options": ["a", "b"], "answer": "A"}, "line 2, question: found only the columns"),
    ],
)
def test_malformed_questions_of_other_layouts_are_refused(
    tmp_path: Path, row: Any, says: str
) -> None:
    good = mcq(question="Why?", options=["Tin", "Iron"], answer="A")
    with pytest.raises(InputError) as refused:
        load_questions(str(write(tmp_path / "q.jsonl", good, row)), "en")
    assert says in str(refused.value)


def test_option_columns_are_read_whole_or_refused(tmp_path: Path) -> None:
    eleven = mcq(**{letter: letter * 2 for letter in "ABCDEFGHIJK"}, answer="A")
    gap = mcq(A="Tin", B="Iron", D="Lead", answer="A")
    cases = ((eleven, "options: found 11 options"), (gap, "columns A, B, D, and one missing among"))
    for row, says in cases:
        with pytest.raises(InputError, match=says):
            load_questions(str(write(tmp_path / "q.jsonl", row)), "en")


def test_a_table_of_questions_is_read(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    text = "question;A;B;C;answer\nWhich?;Tin;Iron;;B\nWhy?;x;y;z;C\nQué?;x;é;;B\n"
    path.write_bytes(text.encode("cp1252"))
    found = load_questions(str(path), "en")
    assert f"{path}: decoded from Windows-1252; {path}: {path}: separated by ';'" in found.note
    first, second, third = found.questions
    assert third.options["B"] == "é"
    assert (first.options, first.answer) == ({"A": "Tin", "B": "Iron"}, "B")
    assert (second.options, second.answer) == ({"A": "x", "B": "y", "C": "z"}, "C")


def test_real_question_files_of_other_layouts_give_the_same_questions(dev_data: Path) -> None:
    found = [
        load_questions(str(dev_data / "formats" / f"mcq_{name}.jsonl"), "en").questions
        for name in ("ab_columns", "index_list", "text_answer")
    ]
    for others in found[1:]:
        assert [(q.question, q.options, q.answer) for q in others] == [
            (q.question, q.options, q.answer) for q in found[0]
        ]
    assert len(found[0]) == 6
    data = make_config("demo", {"dataset": str(dev_data / "formats" / "mcq_ab_columns.jsonl")})
    assert inspect_dataset(data).kind == "questions"
