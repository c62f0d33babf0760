"""The whole story, with a tiny model: what is kept, repeated, resumed and never redone."""

import json
import os
from dataclasses import replace

import pytest

from medcot.config.presets import make_config
from medcot.errors import Cancelled, InputError, RunFailed
from medcot.listener import Listener
from medcot.pipeline.run import evaluate_only, report_only, run, train_only
from medcot.reporting.schema import MEASURES
from medcot.runs.directory import RunDirectory
from tests.support.fakes import make_tiny_model

SMALL = {
    "samples": 12,
    "steps": 4,
    "save_steps": 2,
    "batch": 2,
    "test_samples": 4,
    "generate_samples": 2,
    "max_new_tokens": 6,
    "mcq": ("sample",),
    "mcq_samples": 4,
    "learning_rate": 1e-2,
}


class Hearing(Listener):
    """Keeps what it hears, and may ask to stop after a number of events or rows."""

    def __init__(self, *, stop_after_events=None, stop_after_rows=None):
        self.lines, self.events, self.stages, self.rows = [], [], [], 0
        self._events, self._rows = stop_after_events, stop_after_rows

    def say(self, line):
        self.lines.append(line)

    def stage(self, name):
        self.stages.append(name)

    def event(self, event):
        self.events.append(event)

    def progress(self, done, total):
        self.rows = done

    def should_stop(self):
        events, rows = self._events, self._rows
        return (events is not None and len(self.events) >= events) or (
            rows is not None and self.rows >= rows
        )


@pytest.fixture(scope="module")
def config(tiny_model):
    return make_config("demo", SMALL | {"model": str(tiny_model)})


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "whole")
    hearing = Hearing()
    return directory, run(config, directory, hearing), hearing


def losses(directory):
    return [row["loss"] for row in directory.rows(directory.events)]


def test_the_run_directory_holds_what_is_promised(finished):
    directory, _, hearing = finished
    for name in (
        "config.json", "environment.json", "plan.json", "split.json", "events.jsonl",
        "adapter/adapter_model.safetensors", "adapter/adapter_config.json",
        "adapter/tokenizer.json", "evaluation/before.jsonl", "evaluation/after.jsonl",
        "report.json", "report.md", "status.json", "medcot.log",
    ):  # fmt: skip
        assert directory.has(name), name
    assert directory.stage() == "done"
    assert not directory.has("error.json")
    assert hearing.stages == ["before", "training", "after", "report"]


def test_the_report_has_the_promised_numbers(finished):
    report = finished[0].read_json("report.json")
    for part in ("before", "after", "paired"):
        assert set(report[part]) >= {
            "nll", "mcq", "closed_rate", "finished_rate", "answer_tokens",
        }, part  # fmt: skip
    assert set(report["paired"]["nll"]) >= {"difference", "low", "high", "p_value"}
    assert report["verdict"]["nll"] in ("improved", "no evidence", "worse")
    assert report["after"]["nll"] < report["before"]["nll"]


def test_the_log_tells_the_stages_and_the_environment_lists_fallbacks(finished):
    directory, report, _ = finished
    told = directory.log.read_text(encoding="utf-8")
    assert [told.index(f"stage {name}") for name in ("before", "training", "after")] == sorted(
        told.index(f"stage {name}") for name in ("before", "training", "after")
    )
    assert directory.read_json("environment.json")["fallbacks"] == []
    assert report.facts.environment is not None
    assert report.facts.environment.fallbacks == ()


def test_no_test_row_is_trained_on(finished):
    split = finished[0].read_json("split.json")
    assert len(split["train"]) == 12
    assert not set(split["train"]) & (set(split["test"]) | set(split["validation"]))


def test_the_same_command_gives_the_same_run(finished, config, tmp_path):
    directory, report, _ = finished
    again = RunDirectory(tmp_path / "again")
    assert run(config, again) == report
    assert losses(again) == losses(directory)
    assert (again.path / "report.md").read_text() == (directory.path / "report.md").read_text()


def test_plain_peft_gives_the_same_test_loss(finished, tiny_model):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from medcot.data.dataset import load_dataset
    from medcot.data.prompts import render
    from medcot.data.tokenization import chat_template, encode

    directory, report, _ = finished
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(model, str(directory.adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory.adapter)
    cases = {case.id: case for case in load_dataset(directory.config()).cases}
    chat = chat_template(tokenizer)
    tested = directory.read_json("split.json")["test"][: SMALL["test_samples"]]
    rows = encode(tokenizer, {name: render(cases[name], "chat", chat) for name in tested})
    total = tokens = 0.0
    for row in rows:
        batch = {name: torch.tensor([ids]) for name, ids in row.as_row().items()}
        with torch.no_grad():
            total += model(**batch).loss.item() * len(row.completion_ids)
        tokens += len(row.completion_ids)
    assert total / tokens == pytest.approx(report.after.nll, abs=1e-3)


@pytest.mark.parametrize(
    ("stop", "stage"),
    [({"stop_after_rows": 2}, "before"), ({"stop_after_events": 1}, "training")],
)
def test_a_cancelled_run_resumes_to_the_same_report(finished, config, tmp_path, stop, stage):
    directory = RunDirectory(tmp_path / "run")
    first = Hearing(**stop)
    with pytest.raises(Cancelled):
        run(config, directory, first)
    assert first.stages[-1] == stage
    assert directory.stage() == "cancelled"
    report = run(config, directory, resume=True)
    assert report.after.nll == pytest.approx(finished[1].after.nll, abs=1e-5)
    assert losses(directory) == pytest.approx(losses(finished[0]), abs=1e-5)


def test_a_finished_stage_is_not_done_again(finished, config):
    directory, report, _ = finished
    before = directory.evaluation("before").stat().st_mtime_ns
    events = directory.events.stat().st_mtime_ns
    assert run(config, directory, resume=True) == report
    assert directory.evaluation("before").stat().st_mtime_ns == before
    assert directory.events.stat().st_mtime_ns == events


def test_train_then_evaluate_gives_the_report_of_run(finished, config, tmp_path):
    directory = RunDirectory(tmp_path / "parts")
    train_only(config, directory, Listener())
    report = evaluate_only(directory, Listener())
    assert report == finished[1]
    (directory.path / "report.json").unlink()
    assert report_only(directory, Listener()) == report


def test_data_that_changed_since_is_refused(config, tmp_path):
    from medcot.data.dataset import load_dataset

    cases = load_dataset(config).cases
    path = tmp_path / "rows.jsonl"

    def write(chosen):
        rows = [
            {"id": c.id, "Question": c.question, "Complex_CoT": c.thought, "Response": c.response}
            for c in chosen
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(cases)
    config = config.model_copy(update={"dataset": str(path)})
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(Cancelled):
        run(config, directory, Hearing(stop_after_rows=1))
    write(cases[1:])
    with pytest.raises(InputError, match="changed since"):
        run(config, directory, resume=True)


def test_a_failure_leaves_its_reason_and_the_run_resumable(config, tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path / "run")

    class Failing(Listener):
        def event(self, event):
            raise ZeroDivisionError("a bug")

    with pytest.raises(RunFailed, match="a bug"):
        run(config, directory, Failing())
    error = directory.read_json("error.json")
    assert error["stage"] == "training"
    assert "ZeroDivisionError" in error["traceback"]
    assert directory.stage() == "failed"
    run(config, directory, resume=True)
    assert directory.stage() == "done"
    assert not directory.has("error.json")


def test_rows_longer_than_the_models_context_are_left_out(config, tmp_path):
    model = make_tiny_model(tmp_path / "model", max_position_embeddings=1250)
    few = {"dataset": "sample", "steps": 0, "samples": 12, "mcq": ()}
    changed = config.model_copy(update={"model": str(model), **few})
    hearing = Hearing()
    directory = RunDirectory(tmp_path / "run")
    report = run(changed, directory, hearing)
    assert any("takes 1250 tokens at most" in str(line) for line in hearing.lines)
    assert any("longer than 1250" in str(row.reason) for row in report.facts.dropped)


def test_zero_steps_change_exactly_nothing(config, tmp_path):
    everything = {"steps": 0, "mcq": ("sample",), "mcq_orders": 0, "mcq_samples": 3}
    everything |= {"ability_samples": 4, "thought_samples": 2, "generate_samples": 2}
    report = run(config.model_copy(update=everything), RunDirectory(tmp_path / "run"))
    found = {name: report.paired.of(name) for name in MEASURES}
    compared = {name: one.difference for name, one in found.items() if one is not None}
    assert compared == dict.fromkeys(set(MEASURES) - {"claims_rate"}, 0.0)
    assert report.letter_bias.as_given.difference == 0.0
    assert {one.before - one.after for one in report.differences} == {0.0}
    assert report.verdict.nll == report.verdict.mcq == report.verdict.abilities == "no evidence"


@pytest.mark.real_model
def test_a_spoilt_run_is_called_worse(tmp_path):
    """Each training question with another one's answer, the learning rate 25 times too high."""
    from medcot.data.cases import unit_hash
    from medcot.data.dataset import load_dataset

    few = {"samples": 8, "steps": 4, "test_samples": 8, "batch": 2, "learning_rate": 0.025}
    only_losses = {"mcq": (), "generate_samples": 0, "max_new_tokens": 1, "validation_samples": 0}
    config = make_config("demo", few | only_losses)
    # Short rows: a 135M model reads 350 tokens a row for minutes.
    cases = [
        replace(case, question=" ".join(case.question.split()[:15]))
        for case in load_dataset(config).cases
    ]
    trained = [case for case in cases if unit_hash(case.question) >= config.test_fraction]
    labels = dict(zip((case.id for case in trained), trained[5:] + trained[:5], strict=True))
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for case in cases:
            label = labels.get(case.id, case)
            thought, response = label.thought.split()[:12], label.response.split()[:12]
            row = {"Question": case.question, "Complex_CoT": " ".join(thought)}
            file.write(json.dumps(row | {"Response": " ".join(response)}) + "\n")
    report = run(config.model_copy(update={"dataset": str(path)}), RunDirectory(tmp_path / "run"))
    assert report.verdict.nll == "worse"


def test_the_environment_names_machine_and_packages_but_no_home_folder(finished):
    environment = finished[0].read_json("environment.json")
    assert environment["machine"]["cpu_cores"] >= 1
    assert environment["packages"]["trl"]
    assert os.environ.get("HOME", "?") not in json.dumps(environment["packages"])
