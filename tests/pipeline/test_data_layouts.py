"""A run on conversations without thoughts: none is asked for, trained, measured or shown."""

import json

import pytest

from medcot.config.presets import make_config
from medcot.data.prompts import CLOSE, OPEN
from medcot.data.tokenization import chat_template
from medcot.engines.loading import load_tokenizer
from medcot.evaluation.interface import rows_from_json
from medcot.exporting.proof_set import prompt_around
from medcot.listener import Listener
from medcot.pipeline.run import report_only, run
from medcot.runs.directory import RunDirectory

VALUES = {
    "samples": 8, "steps": 2, "batch": 2, "test_samples": 4, "generate_samples": 2,
    "max_new_tokens": 4, "mcq": ("sample",), "mcq_samples": 2, "mcq_method": "generate",
    "train_turns": "all", "ability_samples": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    said = ["Be brief.", "Fever for {} days?", "Rest {}.", "And then?", "See a doctor on day {}."]
    roles = ["system", "user", "assistant", "user", "assistant"]
    rows = [
        {
            "messages": [
                {"role": r, "content": t.format(n)} for r, t in zip(roles, said, strict=True)
            ]
        }
        for n in range(20)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"model": str(tiny_model), "dataset": str(folder / "rows.jsonl")}
    directory = RunDirectory(folder / "run")
    return directory, run(make_config("demo", VALUES | data), directory)


def test_no_thought_is_asked_for_or_measured(finished):
    directory, report = finished
    assert directory.config().thought == "none"
    for phase in ("before", "after"):
        path = directory.evaluation(phase)
        rows = rows_from_json(directory.rows(path), where=str(path))
        assert not any(OPEN in row.prompt or "step by step" in row.prompt for row in rows)
        assert {row.closed for row in rows} == {None}
        answered = [row for row in rows if row.output and OPEN not in row.output]
        assert all(row.answer == row.output.strip() for row in answered)
    assert report.after.closed_rate is None
    assert report.after.thought_tokens is None
    assert report.paired.closed_rate is None
    assert report.after.answer_tokens is not None
    assert report.paired.nll is not None
    page = directory.report_markdown.read_text()
    assert "thought closed" not in page
    assert "closed their thought" not in page


def test_a_conversation_comes_before_its_question(finished):
    directory, _ = finished
    path = directory.evaluation("after")
    prompts = [row["prompt"] for row in directory.rows(path) if row["kind"] == "case"]
    later = [prompt for prompt in prompts if "And then?" in prompt]
    assert later
    assert all("Be brief." in prompt for prompt in prompts)
    assert all("Fever for" in prompt and "Rest" in prompt for prompt in later)


def test_the_exports_ask_as_the_run_did(finished):
    directory, _ = finished
    config = directory.config()
    around = prompt_around(config, chat_template(load_tokenizer(config)))
    assert OPEN not in "".join(around)
    assert CLOSE not in "".join(around)


def test_the_run_can_be_reported_again(finished):
    directory, report = finished
    assert report_only(directory, Listener()).after == report.after
