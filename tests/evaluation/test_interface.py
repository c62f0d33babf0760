"""Scored rows on disk: what is written is read again, and old rows open."""

from __future__ import annotations

import json

import pytest

from medcot.errors import InputError
from medcot.evaluation.interface import ROW_SCHEMA_VERSION, row_to_json, rows_from_json
from medcot.evaluation.rubric import ClaimFinding
from medcot.evaluation.scorers import make_row
from medcot.records import Generation, TokenLoss

OLD = {"kind": "mcq", "set": "task", "id": "0", "prompt": "p", "output": None, "thought": None}
OLD |= {"answer": None, "correct": True, "nll": None, "nll_sum": None, "completion_tokens": None}
OLD |= {"tokens": None, "closed": None, "finished": None, "repeats": None}


def test_what_is_written_is_read_again() -> None:
    row = make_row("case", "", "c1", "p", TokenLoss(3.0, 2), Generation("t</think>a", 5, True))
    line = json.loads(json.dumps(row_to_json(row)))
    assert rows_from_json([line], "f") == [row]
    assert line["schema_version"] == ROW_SCHEMA_VERSION


def test_a_row_without_a_version_opens() -> None:
    fixed = OLD | {"kind": "fixed", "claims": [{"claim": "rest", "finding": "states"}]}
    scored = OLD | {"metric": "acc", "key": 3, "task": "task", "of": 9}
    first, second = rows_from_json([fixed, scored], "f")
    assert first.claims == (ClaimFinding("rest", "states"),)
    assert (second.key, second.of, second.choice) == ("3", 9, None)


def test_a_damaged_row_names_its_file_number_and_field() -> None:
    with pytest.raises(InputError, match=r"after\.jsonl, row 2: kind"):
        rows_from_json([OLD, OLD | {"kind": "other"}], "after.jsonl")


def test_a_row_of_a_later_version_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"row 1: found schema_version 9.*update medcot"):
        rows_from_json([OLD | {"schema_version": 9}], "after.jsonl")
