"""Sets and tasks that come after the training: clean, asked once, and part of the same report."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from medcot.config.presets import make_config
from medcot.config.schema import RunConfig
from medcot.data.dataset import load_dataset, load_fixed_question
from medcot.errors import InputError
from medcot.listener import Listener
from medcot.pipeline.run import evaluate_only, report_only, run
from medcot.reporting.schema import Agreement
from medcot.reporting.storage import read_report
from medcot.runs.directory import RunDirectory
from tests.support.judge_endpoint import endpoint, prefers

pytestmark = pytest.mark.filterwarnings("ignore")  # lm_eval's own imports warn

SMALL: dict[str, Any] = {
    "samples": 12,
    "steps": 2,
    "batch": 2,
    "test_samples": 4,
    "generate_samples": 2,
    "max_new_tokens": 6,
    "mcq": ("sample",),
    "mcq_samples": 4,
    "learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> RunConfig:
    return make_config("demo", SMALL | {"model": str(tiny_model)})


@pytest.fixture
def trained(config: RunConfig, tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    run(config, directory)
    return directory


def exam(path: Path, questions: list[str]) -> str:
    options = {"A": "rest", "B": "fluids", "C": "surgery"}
    rows = [
        {"id": f"x{n}", "question": text, "options": options, "answer_idx": "ABC"[n % 3]}
        for n, text in enumerate(questions)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(directory: RunDirectory, phase: Any, name: str) -> list[dict[str, Any]]:
    return [r for r in directory.rows(directory.evaluation(phase)) if r["set"] == name]


PLAIN = [f"What helps most against a cold of {n} days?" for n in range(6)]


def test_a_set_added_after_training_loses_its_trained_questions_and_changes_no_training_row(
    trained: RunDirectory, config: RunConfig, tmp_path: Path
) -> None:
    split = trained.read_json("split.json")
    questions = {case.id: case.question for case in load_dataset(config).cases}
    known = [questions[row_id] for row_id in split["train"][:2]]
    added = exam(tmp_path / "late.jsonl", [*PLAIN[:3], *known])
    report = evaluate_only(trained, Listener(), mcq=(added,))
    assert trained.read_json("split.json") == split
    assert [leak.evaluation_id for leak in report.withheld] == ["x3", "x4"]
    assert {leak.case_id for leak in report.withheld} == set(split["train"][:2])
    assert report.paired.mcq.sets["late"].n <= 3
    assert not {"x3", "x4"} & {row["id"] for row in rows(trained, "after", "late")}
    assert "stood in training rows: left out" in trained.report_markdown.read_text()
    assert report_only(trained, Listener()) == report


def test_items_added_later_are_scored_on_both_sides_and_name_no_folder_of_this_machine(
    trained: RunDirectory, tmp_path: Path
) -> None:
    added = exam(tmp_path / "late.jsonl", PLAIN)
    report = evaluate_only(trained, Listener(), mcq=(added,), ability_samples=8)
    assert list(report.paired.mcq.sets) == ["sample", "late"]
    assert trained.config().ability_samples == report.paired.abilities.n == 8
    assert len(report.paired.abilities.sets) == 4
    assert report_only(trained, Listener()) == report
    for phase in ("before", "after"):
        assert str(tmp_path) not in trained.evaluation(phase).read_text()


@pytest.mark.real_model
def test_lm_eval_scores_a_file_of_questions_as_medcot_does(
    trained: RunDirectory, tmp_path: Path
) -> None:
    added = exam(tmp_path / "late.jsonl", PLAIN)
    evaluate_only(trained, Listener(), mcq=(added,), lm_eval=(added,))
    whole = [trained.evaluation(phase).read_bytes() for phase in ("before", "after")]
    report = evaluate_only(trained, Listener(), lm_eval=(added,))  # nothing is asked again
    assert [trained.evaluation(phase).read_bytes() for phase in ("before", "after")] == whole
    asked = report.paired.mcq.sets["late"].n
    assert report.lm_eval_agreement == {"late": Agreement(asked, asked, asked)}
    assert len(rows(trained, "after", "lm_eval/late")) == len(PLAIN)
    assert report.paired.mcq.n == 8
    left = sorted(path.name for path in (trained.path / "evaluation/lm_eval").iterdir())
    assert left == ["late.jsonl", "late.yaml"]


@pytest.mark.real_model
def test_an_interrupted_task_is_completed_without_scoring_a_row_twice(
    trained: RunDirectory, tmp_path: Path
) -> None:
    added = exam(tmp_path / "late.jsonl", PLAIN)
    report = evaluate_only(trained, Listener(), lm_eval=(added,))
    path = trained.evaluation("after")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-3]) + lines[-3][:40])
    assert evaluate_only(trained, Listener(), lm_eval=(added,)) == report
    found = [row["id"] for row in rows(trained, "after", "lm_eval/late")]
    assert sorted(found) == sorted(f"x{n}" for n in range(6))


@pytest.mark.parametrize(
    ("task", "said"), [("no_such_task_of_theirs", "a task of lm_eval"), ("gone.jsonl", "no such")]
)
def test_a_wrong_task_is_refused_before_anything_is_scored(
    trained: RunDirectory, task: str, said: str
) -> None:
    before = trained.evaluation("before").read_bytes()
    with pytest.raises(InputError, match=f"--lm-eval.*{said}"):
        evaluate_only(trained, Listener(), lm_eval=(task,))
    assert trained.evaluation("before").read_bytes() == before


def test_a_run_with_a_judge_reports_its_opinion_and_asks_once(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path / "run")
    with endpoint(prefers("x")) as (url, requests):
        judged = config.model_copy(update={"judge_url": url, "judge_model": "m"})
        report = run(judged, directory)
        asked = len(requests)
        assert report_only(directory, Listener()).facts.judge == report.facts.judge
        with monkeypatch.context() as kernel:  # It does not carry what corrects a judge.
            kernel.setattr("medcot.pipeline.report.find_spec", lambda name: None)
            found = report_only(directory, Listener()).facts.judge
        assert found
        assert (found.n, found.judged) == (3, None)
        assert len(requests) == asked
    assert report.facts.judge
    assert report.facts.judge.judged
    assert report.facts.judge.n == 3  # two answered test rows and the fixed question
    assert "## The judge" in directory.report_markdown.read_text()
    with pytest.raises(InputError, match="--judge-model"):
        run(config.model_copy(update={"judge_url": url}), RunDirectory(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_answers_are_graded_by_criteria_and_checked_by_hand(
    config: RunConfig, tmp_path: Path
) -> None:
    path, directory = tmp_path / "criteria.jsonl", RunDirectory(tmp_path / "run")
    fixed = load_fixed_question("en").question
    criteria = [{"criterion": "States that the volume is normal", "points": 1}]
    path.write_text(json.dumps({"question": fixed, "rubrics": criteria}) + "\n")
    with endpoint(lambda answers: "tie" if answers else "yes") as (url, requests):
        judge = {"judge_url": url, "judge_model": "m", "judge_criteria": str(path)}
        graded = config.model_copy(update=judge | {"steps": 0, "mcq": ()})
        run(graded, directory)
        for phase in ("before", "after"):  # the small model never ends its thought
            scored = directory.evaluation(phase)
            lines = [json.loads(line) for line in scored.read_text().splitlines()]
            answer = "No." if phase == "before" else "No, never."
            given = [one | {"answer": answer if one["kind"] == "fixed" else None} for one in lines]
            scored.write_text("".join(json.dumps(one) + "\n" for one in given))
        report = report_only(directory, Listener())
        asked = len(requests)
        labels = directory.path / "evaluation" / "judge_labels.jsonl"
        rows = [json.loads(line) for line in labels.read_text(encoding="utf-8").splitlines()]
        assert {row["met"] for row in rows} == {None}
        labels.write_text("".join(json.dumps(row | {"met": False}) + "\n" for row in rows))
        pairs = directory.path / "evaluation" / "judge_pairs.jsonl"
        [pair] = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
        assert {pair["answer_1"], pair["answer_2"]} == {"No.", "No, never."}
        pairs.write_text(json.dumps(pair | {"better": 1}) + "\n")
        again = report_only(directory, Listener())
        assert len(requests) == asked
    assert report.facts.grades
    assert again.facts.grades
    assert (report.facts.grades.before, report.facts.grades.after) == (1.0, 1.0)
    assert (report.facts.grades.checked, again.facts.grades.checked) == (0, 1)
    assert again.facts.grades.agreement == 0.0
    assert report.facts.judge
    assert again.facts.judge
    # Two pairs without an answer are ties, for the judge as by hand.
    assert (report.facts.judge.checked, again.facts.judge.checked) == (0, 3)
    assert again.facts.judge.checked_agreement == pytest.approx(2 / 3)
    assert "Criterion by criterion" in directory.report_markdown.read_text()
    assert read_report(directory.path) == again
    labels.write_text(json.dumps(rows[0] | {"met": "maybe"}) + "\n")
    with pytest.raises(InputError, match=r"judge_labels.jsonl.*met is 'maybe'.*true, false"):
        report_only(directory, Listener())
    pairs.write_text(json.dumps(pair | {"better": "both"}) + "\n")
    with pytest.raises(InputError, match=r"judge_pairs.jsonl.*better is 'both'.*tie"):
        report_only(directory, Listener())


def test_a_killed_evaluation_scores_no_row_twice(config: RunConfig, tmp_path: Path) -> None:
    many = config.model_copy(update={"mcq_samples": 0, "generate_samples": 4, "steps": 0})
    path, out = tmp_path / "config.json", tmp_path / "run"
    path.write_text(many.model_dump_json())
    command = [sys.executable, "-m", "medcot", "run", "--config", str(path), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    directory = RunDirectory(out)
    deadline = time.monotonic() + 120
    while not list(directory.rows(directory.evaluation("before"))) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = directory.evaluation("before").read_bytes()
    report = run(directory.config(), directory, resume=True)
    assert directory.evaluation("before").read_bytes().startswith(kept.rpartition(b"\n")[0])
    for phase in ("before", "after"):
        found = [
            (row["kind"], row["set"], row["id"])
            for row in directory.rows(directory.evaluation(phase))
        ]
        assert len(found) == len(set(found))
    assert report == run(many, RunDirectory(tmp_path / "whole"))
