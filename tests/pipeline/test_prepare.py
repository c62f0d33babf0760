"""What planning refuses: data and models that no run could use, in one line with a way out."""

import json

import pytest

from medcot.config.presets import make_config
from medcot.errors import InputError
from medcot.hardware.machine import detect_machine
from medcot.pipeline.prepare import plan_only


def plan(model, **values):
    return plan_only(make_config("demo", {"model": str(model), **values}), detect_machine())


def test_rows_that_all_overlap_the_evaluation_are_counted_with_the_first_pair(tiny_model, tmp_path):
    template = (
        "You are a careful physician in a large hospital. Read the case below with great care and"
        " say what you would do next for this patient, and why you would do it: case {n}?"
    )
    rows = [
        {"Question": template.format(n=n), "Complex_CoT": "So.", "Response": "Wait."}
        for n in range(24)
    ]
    path = tmp_path / "templated.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as refusal:
        plan(tiny_model, dataset=str(path))
    line = str(refusal.value)
    assert line.startswith(f"--dataset {path}: each of the ")
    assert "training rows overlaps an evaluation question; the first is row-" in line
    assert "of test rows; use rows whose questions" in line


def test_rows_that_are_all_too_long_name_the_shortest(tiny_model):
    with pytest.raises(InputError, match=r"--max-length 64: every row is longer; the shortest has"):
        plan(tiny_model, max_length=64)
