"""Data sets from files and samples: what is refused, what is left out, and how rows are split."""

# The table of malformed files is read by its rows.
# ruff: noqa: E501

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medcot.config.presets import make_config
from medcot.config.schema import RunConfig
from medcot.data import parquet_limits
from medcot.data.cases import unit_hash
from medcot.data.dataset import (
    VALIDATION_FRACTION,
    load_dataset,
    load_fixed_question,
    read_source,
    split_cases,
)
from medcot.data.inspection import describe_inspection, inspect_dataset
from medcot.data.selection import Candidate, select_rows
from medcot.data.sources import read_file
from medcot.data.text import find_flaw, normalise
from medcot.data.tokenization import TokenizedRow
from medcot.errors import InputError
from medcot.records import Case
from medcot.runs.directory import RunDirectory

GOOD = {"Question": "What is wrong?", "Complex_CoT": "Let me see.", "Response": "Nothing."}


def row(number: int = 1, **changes: Any) -> dict[str, Any]:
    numbered = {"Question": f"What is wrong with patient {number}?"}
    return {k: v for k, v in (GOOD | numbered | changes).items() if v is not ...}


def jsonl(*rows: dict[str, Any] | str | bytes) -> bytes:
    """Rows as JSON Lines; texts and bytes are put in as they are."""
    lines = [json.dumps(r).encode() if isinstance(r, dict) else r for r in rows]
    return b"\n".join(line.encode() if isinstance(line, str) else line for line in lines) + b"\n"


def parquet(rows: list[dict[str, Any]]) -> bytes:
    return to_parquet(pa.Table.from_pylist(rows))


def to_parquet(table: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def config_for(path: Path | str, **options: Any) -> RunConfig:
    return make_config("demo", {"dataset": str(path), **options})


def split_of(count: int, **options: Any) -> tuple[tuple[Case, ...], RunConfig]:
    cases = tuple(Case(f"c{n}", f"Question number {n}?", "t", "r") for n in range(count))
    return cases, make_config("demo", options)


HEAD = "Question,Complex_CoT,Response\n"
LATIN = row(2)["Question"].encode() + b" caf\xe9"
MISREAD = "caf\u00e9".encode().decode("latin-1")
CHINESE_MISREAD = "患者男".encode().decode("cp1252", "ignore")
BAD_BYTES = json.dumps(row(2)).encode().replace(b"Nothing.", b"caf\xe9")

NO_TIME_ZONE = pa.array([0], pa.timestamp("us", "Asia/Beijing"))
"""A column in a time zone that no data base knows."""


def parquet_with(name: str, column: Any) -> bytes:
    table = pa.Table.from_pylist([row(**{name: ...})])
    return to_parquet(table.append_column(name, column))


PARQUET_TWICE = to_parquet(
    pa.Table.from_pylist([row()]).append_column("Response", pa.array(["TODO"]))
)

DICTIONARY_BOMB = to_parquet(
    pa.Table.from_pylist([row(n, Response="x" * 2_000_000) for n in range(3)]), compression="zstd"
)


def claiming(pattern: Any) -> bytes:
    claim = {"text": "It is so.", "states": [pattern], "contradicts": []}
    return jsonl(row(1, claims=[claim]))


# name, file name, content, where the fault is, and what the message must say
MALFORMED: list[tuple[str, str, bytes, str, str]] = [
    ("missing column", "a.jsonl", jsonl(row(1), row(2, Response=...)), ", line 2, Response", "Question, Complex_CoT; expected Response"),
    ("misspelt column", "a.jsonl", jsonl(row(Question=..., Qestion="Q?")), ", line 1, Question", "only the columns Complex_CoT, Response, Qestion"),
    ("empty field", "a.jsonl", jsonl(row(1), row(2), row(3, Question="")), ", line 3, Question", "empty text"),
    ("blank field", "a.jsonl", jsonl(row(Complex_CoT=" \n\t ")), ", line 1, Complex_CoT", "empty text"),
    ("only punctuation", "a.jsonl", jsonl(row(Question="?! ...")), ", line 1, Question", "nothing but punctuation"),
    ("null field", "a.jsonl", jsonl(row(Response=None)), ", line 1, Response", "null; expected text"),
    ("number for text", "a.jsonl", jsonl(row(Question=61)), ", line 1, Question", "number 61"),
    ("list for text", "a.jsonl", jsonl(row(Complex_CoT=["a", "b"])), ", line 1, Complex_CoT", "list ['a', 'b']"),
    ("object for text", "a.jsonl", jsonl(row(Response={"a": 1})), ", line 1, Response", "object"),
    ("truth for text", "a.jsonl", jsonl(row(Response=True)), ", line 1, Response", "true/false"),
    ("replacement character", "a.jsonl", jsonl(row(Response="caf\ufffd")), ", line 1, Response", "U+FFFD at character 4"),
    ("lone surrogate", "a.jsonl", jsonl(row(Response="caf\ud83d")), ", line 1, Response", "lone surrogate U+D83D"),
    ("mojibake", "a.jsonl", jsonl(row(Response=MISREAD)), ", line 1, Response", r"'\xc3\xa9' at character 4"),
    ("quotes as mojibake", "a.jsonl", jsonl(row(Response="the patientâ€™s")), ", line 1, Response", "at character 12"),
    ("Chinese mojibake", "a.jsonl", jsonl(row(Response=CHINESE_MISREAD)), ", line 1, Response", "another encoding"),
    ("not UTF-8", "a.jsonl", jsonl(row(1), BAD_BYTES), ", line 2, Response", "byte 0xe9 at character 4"),
    ("UTF-16", "a.jsonl", json.dumps(GOOD).encode("utf-16"), ", line 1", "UTF-16"),
    ("NUL", "a.jsonl", jsonl(row(Question="a\0b")), ", line 1, Question", "control character U+0000"),
    ("escape character", "a.jsonl", jsonl(row(Question="a\x1b[31mb")), ", line 1, Question", "U+001B"),
    ("opening tag", "a.jsonl", jsonl(row(Complex_CoT="<think>Let me")), ", line 1, Complex_CoT", "the tag <think> at character 1"),
    ("closing tag", "a.jsonl", jsonl(row(Response="a</think>b")), ", line 1, Response", "the tag </think>"),
    ("broken JSON", "a.jsonl", jsonl(row(1), '{"Question": "a"'), ", line 2, row", "broken JSON"),
    ("cut JSON text", "a.jsonl", jsonl('{"Question": "a'), ", line 1, row", "Unterminated string"),
    ("nested JSON", "a.jsonl", jsonl("[" * 200_000), ", line 1, row", "nested too deeply"),
    ("list in a line", "a.jsonl", jsonl(row(), "[1, 2]"), ", line 2, row", "JSON list; expected a JSON object"),
    ("text in a line", "a.jsonl", jsonl('"hello"'), ", line 1, row", "JSON text"),
    ("key twice", "a.jsonl", jsonl('{"Question": "a", "Question": "b"}'), ", line 1, row", "the key 'Question' twice"),
    ("id twice", "a.jsonl", jsonl(row(1, id="x"), row(2, id="x")), ", line 2, id", "'x', which an earlier row has"),
    ("id of a wrong type", "a.jsonl", jsonl(row(id=[1])), ", line 1, id", "list [1]"),
    ("unknown language", "a.jsonl", jsonl(row(lang="de")), ", line 1, lang", "'de'; expected en or zh"),
    ("reference of a wrong type", "a.jsonl", jsonl(row(reference=3)), ", line 1, reference", "number 3"),
    ("claims as text", "a.jsonl", jsonl(row(claims="c")), ", line 1, claims", "text"),
    ("claim without patterns", "a.jsonl", jsonl(row(claims=[{"text": "c", "states": [], "contradicts": []}])), ", line 1, claims", "a claim without patterns"),
    ("claim with a broken pattern", "a.jsonl", jsonl(row(claims=[{"text": "c", "states": ["("], "contradicts": []}])), ", line 1, claims", "regular expressions"),
    ("fault after a blank line", "a.jsonl", jsonl(row(1), "", "  ", row(2, Question="")), ", line 4, Question", "empty text"),
    ("several faults", "a.jsonl", jsonl(row(1, Question=""), row(2, Response=1)), ", line 1, Question", "and 1 more: medcot data"),
    ("empty file", "a.jsonl", b"", "", "the file is empty"),
    ("blank file", "a.jsonl", b"\n\n", "", "no rows"),
    ("JSON object", "a.json", b'{"Question": "a"}', ", line 1", "JSON object; expected one JSON list"),
    ("JSON Lines as JSON", "a.json", jsonl(row(1), row(2)), ", line 2", "belong in a .jsonl file"),
    ("broken JSON file", "a.json", b'[\n{"Question": "a"},\n{"Question" "b"}]', ", line 3", "broken JSON"),
    ("empty JSON list", "a.json", b"[]", "", "no rows"),
    ("text in a JSON list", "a.json", json.dumps([row(), "x"]).encode(), ", row 2, row", "JSON text"),
    ("bad bytes in JSON", "a.json", b"[" + BAD_BYTES + b"]", ", row 1, Response", "byte 0xe9"),
    ("CSV without its header", "a.csv", b"What?,Hm.,Yes.\nWhy?,Hm.,No.\n", ", line 1, Question", "only the columns What?, Hm., Yes."),
    ("CSV without a column", "a.csv", b"Question,Complex_CoT\na,b\nc,d\n", ", line 1, Response", "Question, Complex_CoT"),
    ("CSV column twice", "a.csv", b"Question,Question\na,b\n", ", line 1", "the column 'Question' twice"),
    ("CSV header alone", "a.csv", HEAD.encode(), "", "no rows"),
    ("CSV with a cell too few", "a.csv", (HEAD + "a,b,c\nd,e\n").encode(), ", line 3, row", "2 cells; expected 3"),
    ("CSV with an open quote", "a.csv", (HEAD + 'a,b,"c\nd,e,f\n').encode(), ", line 3", "unexpected end of data"),
    ("CSV empty cell", "a.csv", (HEAD + '"a\nb",b,c\nd,,f\n').encode(), ", line 4, Complex_CoT", "empty text"),
    ("CSV in Cyrillic of another time", "a.csv", HEAD.encode() + "Почему?,b,c\n".encode("cp1251"), ", line 2, Question", "byte 0xcf"),
    ("not Parquet", "a.parquet", b"PAR1 but not really", ", row 1", "expected a complete Parquet file"),
    ("Parquet without a column", "a.parquet", parquet([row(Response=...)]), ", schema, Response", "Question, Complex_CoT"),
    ("Parquet with null", "a.parquet", parquet([row(1), row(2, Response=None)]), ", row 2, Response", "null"),
    ("Parquet with numbers", "a.parquet", parquet([row(Response=5)]), ", row 1, Response", "number 5"),
    ("CSV with 10,000 columns", "a.csv", (",".join(f"c{n}" for n in range(10_000)) + "\n" + "," * 9_999 + "\n").encode(), ", line 1, Question", "only the columns c0, c1"),
    ("CSV with a million columns", "a.csv", b"a," * 1_000_000 + b"b\n", ", line 1", "1,000,001 columns; expected at most 10,000"),
    ("line without an end", "a.jsonl", b"x" * 16_000_002, ", line 1", "a longer line; expected at most 16,000,000"),
    ("list of millions of objects", "a.json", b"[" + b"{}," * 2_100_000 + b"{}]", "", "millions of values"),
    ("text that no model can take", "a.jsonl", jsonl(row(1, Response="x" * 1_000_001)), ", line 1, Response", "1,000,001 characters; expected at most 1,000,000"),
    ("Parquet whose rows share a huge entry", "a.parquet", DICTIONARY_BOMB, ", row 1, Response", "2,000,000 characters; expected at most 1,000,000"),
    ("claim pattern that is none", "a.jsonl", claiming("(("), ", line 1, claims", "is no pattern"),
    ("claim pattern nested too deeply", "a.jsonl", claiming("(" * 900 + ")" * 900), ", line 1, claims", "is no pattern"),
    ("claim pattern that repeats too often", "a.jsonl", claiming("a{99999999999}"), ", line 1, claims", "is no pattern"),
    ("claim pattern that never ends", "a.jsonl", claiming("(a|aa)+$"), ", line 1, claims", "takes too long"),
    ("claim pattern with huge sets", "a.jsonl", claiming("[\u0001-\U0010ffff]" * 90), ", line 1, claims", "ranges over 100,000"),
    ("claim pattern that is long", "a.jsonl", claiming("a" * 2001), ", line 1, claims", "2,001 characters"),
    ("claim pattern that is a number", "a.jsonl", claiming(5), ", line 1, claims", "patterns are texts"),
    ("CSV with a delimiter line", "a.csv", b"sep=;\nQuestion;Complex_CoT;Response\na;b;c\nd;e\n", ", line 4, row", "2 cells; expected 3"),
    ("CSV of an old Macintosh", "a.csv", HEAD.replace("\n", "\r").encode() + b"a,b,c\r", ", line 1", "a carriage return alone"),
    ("JSON Lines of an old Macintosh", "a.jsonl", jsonl(row(1), row(2)).replace(b"\n", b"\r"), ", line 1", "a carriage return alone"),
    ("gzip named JSON Lines", "a.jsonl", gzip.compress(jsonl(row())), "", "gzip data; unpack it"),
    ("spreadsheet named CSV", "a.csv", b"PK\x03\x04rest", "", "a spreadsheet; unpack it, or export it as CSV"),
    ("LFS pointer", "a.parquet", b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "", "a Git LFS pointer of 50 bytes"),
    ("web page", "a.parquet", b"\n<!DOCTYPE html><p>", "", "a web page; download the file itself"),
    ("Parquet column twice", "a.parquet", PARQUET_TWICE, ", schema", "the column 'Response' twice"),
    ("Parquet with times for text", "a.parquet", parquet_with("Response", NO_TIME_ZONE), ", row 1, Response", "Beijing"),
    ("unknown extension", "a.txt", b"x", "", "the extension '.txt'"),
    ("no extension", "a", b"x", "", "the extension '(none)'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "where", "says"),
    [case[1:] for case in MALFORMED],
    ids=[case[0].replace(" ", "-") for case in MALFORMED],
)
def test_malformed_file_is_refused_in_one_line_that_names_file_row_and_field(
    tmp_path: Path, name: str, content: bytes, where: str, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        load_dataset(config_for(path))
    message = str(refusal.value)
    assert message.startswith(f"--dataset {path}{where}: ")
    assert "; " in message.removeprefix(f"--dataset {path}{where}: ")
    assert says in message
    assert message.isprintable()
    assert message.encode()


def test_columns_that_cannot_be_guessed_are_told_once(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"one,two,three\na,b,c\nd,e,f\n")
    (problem,) = inspect_dataset(config_for(path)).problems
    assert "Question, Complex_CoT, Response (other names: --columns question=NAME" in problem.what
    with pytest.raises(InputError) as refused:
        load_dataset(config_for(path))
    assert "more: medcot data" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.jsonl", "no such file"),
        ("folder/", "a folder"),
        ("folder.jsonl", "a folder"),
        ("smaple", "did you mean 'sample'?"),
        ("a/b/c", "neither a file nor a hub name"),
        ("notes.xlsx", "no such file"),
        ("\0.jsonl", "not a valid file name; expected"),
    ],
)
def test_what_is_no_data_set_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"^--dataset ") as refusal:
        load_dataset(config_for(name))
    assert says in str(refusal.value)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no user ids on this platform")
def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(row()))
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # root reads everything, so be somebody else for a moment
            os.seteuid(65534)
        with pytest.raises(InputError, match="Permission denied; expected a readable file"):
            load_dataset(config_for(path))
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(("limit", "says"), [("LARGEST_CHUNK", "unpack to"), ("MEMORY", "a dict")])
def test_a_parquet_bomb_is_refused_before_it_unpacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, says: str
) -> None:
    monkeypatch.setattr(parquet_limits, limit, 1_000_000)
    path = tmp_path / "a.parquet"
    path.write_bytes(DICTIONARY_BOMB)
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match=f"column Response: found .*{says}"):
        load_dataset(config_for(path))


def test_long_entries_of_a_dictionary_are_shared_or_decoded_a_few_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(DICTIONARY_BOMB)
    plan = parquet_limits.plan_reading(path, pq.read_metadata(path), 512)
    assert plan == (512, ["Response"])
    path.write_bytes(parquet([row(n, nested=[{"a": "x" * 2_000_000}]) for n in range(3)]))
    plan = parquet_limits.plan_reading(path, pq.read_metadata(path), 512)
    assert 100 < plan.rows <= parquet_limits.MEMORY / 2e6
    path.write_bytes(parquet([row(n) for n in range(50)]))
    assert parquet_limits.plan_reading(path, pq.read_metadata(path), 512) == (512, [])


def test_rows_that_share_a_long_entry_share_its_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(DICTIONARY_BOMB)
    first, second, third = (read["Response"] for read in (one.values for one in read_file(path)))
    assert first is second is third


@pytest.mark.parametrize(
    "column",
    [
        NO_TIME_ZONE,
        pa.array([2**62], pa.timestamp("us")),
        pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xe9")),
        pa.array([None]),
    ],
    ids=["time zone", "date out of range", "not UTF-8", "nothing"],
)
def test_a_column_that_nobody_needs_makes_no_file_unreadable(tmp_path: Path, column: Any) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_with("created", column))
    assert [case.response for case in read_source(config_for(path)).found.cases] == [
        row()["Response"]
    ]


def test_a_delimiter_line_is_heeded(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"sep=;\r\nQuestion;Complex_CoT;Response\r\nWhy?;So, so.;Yes\r\n")
    source = read_source(config_for(path))
    assert [case.thought for case in source.found.cases] == ["So, so."]
    assert source.notes[0].endswith(f"{path}: separated by ';'")


def test_all_formats_give_the_same_cases(tmp_path: Path) -> None:
    rows = [row(n, Response="Multi-line,\n“quoted” 回答") for n in range(5)]
    lines = [",".join(f'"{cell}"' for cell in r.values()) for r in rows]
    contents = {
        "a.jsonl": jsonl(*rows),
        "b.json": json.dumps(rows).encode(),
        "c.csv": (HEAD + "\n".join(lines)).encode(),
        "d.parquet": parquet(rows),
        "e.JSONL": b"\xef\xbb\xbf" + jsonl(*rows).replace(b"\n", b"\r\n"),
        "f.csv": b"\xef\xbb\xbf" + (HEAD + "\n".join(lines)).encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    loaded = [load_dataset(config_for(tmp_path / name)) for name in contents]
    assert len({data.fingerprint for data in loaded}) == 1
    assert loaded[0].cases[0].response == "Multi-line,\n“quoted” 回答"
    assert [case.id for case in loaded[0].cases] == [f"row-{n}" for n in range(1, 6)]


def test_a_line_separator_inside_a_json_text_does_not_end_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = json.dumps(row(Response="one\u2028two"), ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    assert load_dataset(config_for(path)).cases[0].response == "one\u2028two"


def test_a_cell_longer_than_the_csv_modules_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(HEAD + f"q,{'thought ' * 30_000},r\n")
    assert len(load_dataset(config_for(path)).cases[0].thought) == 240_000


def test_optional_columns_are_kept(tmp_path: Path) -> None:
    claim = {"text": "c", "states": ["yes"], "contradicts": ["no"]}
    path = tmp_path / "a.jsonl"
    more = {"id": 7, "lang": "zh", "specialty": "cardiology", "source": "s", "claims": [claim]}
    path.write_bytes(jsonl(row(1, reference_answer="ref", **more), row(2, specialty=None, id="")))
    first, second = load_dataset(config_for(path)).cases
    assert (first.id, first.language, first.specialty, first.source) == (
        "7",
        "zh",
        "cardiology",
        "s",
    )
    assert first.reference == "ref"
    assert first.claims[0].states == ("yes",)
    assert (second.id, second.specialty, second.language) == ("row-2", "", "en")


def test_repeated_questions_are_left_out_and_listed_whatever_they_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    same = row(1) | {"Question": "  what IS wrong, with patient １ "}
    path.write_bytes(jsonl(row(1), same, row(1, Response="Everything."), row(2)))
    data = load_dataset(config_for(path))
    assert [case.id for case in data.cases] == ["row-1", "row-4"]
    assert [(gone.id, str(gone.reason)) for gone in data.dropped] == [
        ("row-2", "same question as row-1, and answer"),
        ("row-3", "same question as row-1, with another answer"),
    ]


def test_the_fingerprint_changes_with_what_a_run_depends_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    seen: set[str] = set()
    for rows in (
        [row(1), row(2)],
        [row(2), row(1)],
        [row(1), row(2, Response="Other.")],
        [row(1), row(2, id="x")],
        [row(1), row(2, lang="zh")],
        [row(1), row(2, reference="x")],
    ):
        path.write_bytes(jsonl(*rows))
        seen.add(load_dataset(config_for(path)).fingerprint)
    assert len(seen) == 6


@pytest.mark.parametrize("language", ["en", "zh"])
def test_samples_are_synthetic_and_say_so(language: str) -> None:
    data = load_dataset(make_config("demo", {"language": language}))
    assert data.synthetic
    assert "bundled samples: synthetic, not clinically reviewed" in data.notes
    assert {case.language for case in data.cases} == {language}
    assert not data.dropped
    assert len(data.cases) >= {"en": 64, "zh": 32}[language]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_fixed_question_brings_its_reference_and_claims(language: Any) -> None:
    fixed = load_fixed_question(language)
    assert fixed.language == language
    assert fixed.reference
    assert len(fixed.claims) == 2


def test_too_few_rows_are_a_note_and_not_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(*(row(n) for n in range(40))))
    config = config_for(path, samples=5000)
    data = load_dataset(config)
    trained = len(split_cases(data.cases, config).train)
    assert any(f"--samples 5000: {path} has only {trained} such rows" in n for n in data.notes)


def test_rows_in_another_language_than_said_are_a_note(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(*(row(n, Question=f"患者{n}怎么了？") for n in range(9))))
    assert any("9 of 9" in note for note in load_dataset(config_for(path)).notes)
    said = load_dataset(config_for(path, language="zh"))
    assert not any("9 of 9" in note for note in said.notes)


def test_no_row_to_train_or_test_on_is_an_error_that_names_what_to_change() -> None:
    for fraction, part, direction in ((0.5, "training", "smaller"), (1e-9, "testing", "larger")):
        cases, config = split_of(400, test_fraction=fraction)
        if part == "training":
            cases = tuple(case for case in cases if unit_hash(case.question) < 0.55)
        with pytest.raises(InputError) as refusal:
            split_cases(cases, config)
        assert f"rows is assigned to {part}" in str(refusal.value)
        assert f"a {direction} --test-fraction" in str(refusal.value)


def test_training_rows_are_the_first_in_file_order_and_test_rows_the_lowest_hashes() -> None:
    cases, config = split_of(300, samples=50, test_samples=10)
    split = split_cases(cases, config)
    at = {case.id: unit_hash(case.question) for case in cases}
    held_out = config.test_fraction + VALIDATION_FRACTION
    assert split.train == tuple(c.id for c in cases if at[c.id] >= held_out)[:50]
    assert sorted(at[i] for i in split.test) == sorted(at.values())[:10]
    assert all(config.test_fraction <= at[i] < held_out for i in split.validation)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    few=st.integers(40, 150),
    more=st.integers(0, 150),
    samples=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    shuffle=st.randoms(use_true_random=False),
)
def test_neither_samples_nor_more_rows_move_a_row_between_training_and_test(
    few: int, more: int, samples: tuple[int, int], shuffle: Any
) -> None:
    cases, small = split_of(few + more, samples=samples[0])
    _, large = split_of(1, samples=samples[1])
    mixed = list(cases)
    shuffle.shuffle(mixed)
    before, after = split_cases(cases[:few], small), split_cases(mixed, large)
    assert not set(before.train) & set(after.test)
    assert not set(before.test) & set(after.train)
    assert not set(before.validation) & {*after.train, *after.test}


def test_a_rewording_in_case_width_and_punctuation_falls_to_the_same_part() -> None:
    assert unit_hash("Is Na+ < 130 mmol/L low?") == unit_hash("  is na+ <  130 ｍｍｏｌ／Ｌ LOW")
    assert unit_hash("Is Na+ < 130 mmol/L low?") != unit_hash("Is Na+ > 130 mmol/L low?")
    assert normalise("患者，男，45 岁。") == normalise("患者 男 45岁")


def test_overlong_rows_are_dropped_whole_with_their_length() -> None:
    candidates = [
        Candidate(name, TokenizedRow.of(name, [1, 2], range(length)))
        for name, length in (("a", 3), ("b", 50), ("c", 1), ("d", 90))
    ]
    found = select_rows(candidates, samples=2, max_length=5)
    assert [row.id for row in found.rows] == ["a", "c"]
    assert [(d.id, str(d.reason)) for d in found.dropped] == [("b", "52 tokens, longer than 5")]
    found = select_rows(candidates, samples=3, max_length=5)
    assert [d.id for d in found.dropped] == ["b", "d"]


@pytest.mark.parametrize(
    "text",
    ["naïve café, 37 °C ± 0.5", "«MAÇÃ» à São Paulo", "患者，男", "a < b > c", "l’été… où ?\t\n", "β-blocker ≥ 5 µg"],
)  # fmt: skip
def test_ordinary_text_has_no_flaw(text: str) -> None:
    assert find_flaw(text) is None


@given(st.text())
def test_every_text_can_be_checked_and_normalised(text: str) -> None:
    flaw = find_flaw(text)
    assert flaw is None or flaw.got.isprintable()
    assert "  " not in normalise(text)


def test_inspection_lists_every_problem_and_counts_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [row(1), row(1), row(2, Question=""), row(3, Response=5, Complex_CoT=""), row(4)]
    path.write_bytes(jsonl(*rows, "{"))
    found = inspect_dataset(config_for(path))
    assert (found.rows, found.kept, len(found.duplicates)) == (6, 2, 1)
    assert [(p.where.rpartition(", ")[2], p.field) for p in found.problems] == [
        ("line 3", "Question"),
        ("line 4", "Complex_CoT"),
        ("line 4", "Response"),
        ("line 6", "row"),
    ]
    lines = list(describe_inspection(found))
    assert lines[0] == f"{path}: 6 rows, 2 cases kept"
    assert any("line 3, Question: found empty text; expected text" in line for line in lines)


def test_an_inspection_of_broken_text_can_be_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    bad = {"id": "x\ud800", "Questi\udc80n": 1, "lang": "\udcff", "claims": "\ud800"}
    path.write_bytes(jsonl(bad, row(1)))
    found = inspect_dataset(config_for(path))
    RunDirectory(tmp_path).write_json("inspection.json", found)
    assert json.loads((tmp_path / "inspection.json").read_text())["kept"] == 1
    assert all(line.isprintable() for line in describe_inspection(found))


def test_lengths_are_of_rows_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(*(row(n, Response="x" * n) for n in range(1, 101))))
    lengths = inspect_dataset(config_for(path)).lengths["Response"]
    assert (lengths.mean, lengths.median, lengths.p95, lengths.longest) == (50.5, 50, 95, 100)


def test_real_rows_are_all_valid(dev_data: Path) -> None:
    data = load_dataset(config_for(dev_data / "cot_en.jsonl", samples=64))
    assert len(data.cases) == 420
    assert not data.dropped
