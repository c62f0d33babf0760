"""A run made with relative paths is of use from every working directory."""

import json
import shutil
from pathlib import Path

import pytest

from medcot.config.presets import make_config
from medcot.errors import InputError
from medcot.inference.ask import ask
from medcot.listener import Listener
from medcot.pipeline.run import evaluate_only, report_only, run
from medcot.reporting.storage import report_from_json
from medcot.runs.directory import RunDirectory

QUESTION = {
    "question": "Which valve lies between left atrium and ventricle?",
    "options": {"A": "mitral", "B": "aortic"},
    "answer_idx": "A",
}
VALUES = {
    "model": "base", "dataset": "rows.jsonl", "mcq": ("exam.jsonl",), "samples": 8, "steps": 2,
    "batch": 2, "test_samples": 4, "generate_samples": 1, "max_new_tokens": 4,
}  # fmt: skip


def write_questions(path, number):
    path.write_text("".join(json.dumps(QUESTION | {"id": f"q{n}"}) + "\n" for n in range(number)))


@pytest.fixture(scope="module")
def place(tiny_model, tmp_path_factory):
    """A folder with a model, data and questions, and a run that names them without it."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_model, folder / "base")
    cases = [
        {"Question": f"Fever for {n} days?", "Complex_CoT": f"{n} days.", "Response": f"Rest {n}."}
        for n in range(20)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    write_questions(folder / "exam.jsonl", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(make_config("demo", VALUES), RunDirectory("run"))
    return folder


@pytest.fixture
def directory(place, tmp_path, monkeypatch):
    """A copy of the run, seen from another working directory."""
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return RunDirectory(tmp_path / "run")


def test_the_config_is_kept_as_given_and_the_working_directory_beside_it(place):
    kept = json.loads((place / "run" / "config.json").read_text())
    assert (kept["model"], kept["dataset"], kept["mcq"]) == ("base", "rows.jsonl", ["exam.jsonl"])
    environment = json.loads((place / "run" / "environment.json").read_text())
    assert environment["working_directory"] == str(place)


def test_the_adapter_names_its_base_by_a_path_that_is_good_anywhere(place):
    adapter = json.loads((place / "run" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(place / "base")


def test_a_run_is_reported_asked_and_scored_again_from_another_folder(place, directory):
    first = report_only(directory, Listener())
    assert list(ask(directory, "What now?"))
    directory.remove("evaluation/after.jsonl")
    assert evaluate_only(directory, Listener()) == first
    assert first == report_from_json(json.loads((place / "run" / "report.json").read_text()))
    assert directory.config().dataset == str(place / "rows.jsonl")


def test_a_run_resumes_from_another_folder_and_then_at_home(place, directory, monkeypatch):
    directory.remove("report.json")
    run(directory.config(), directory, resume=True)
    monkeypatch.chdir(place)
    assert directory.config().dataset == "rows.jsonl"
    assert report_only(directory, Listener())


def test_a_set_added_from_another_folder_is_found_from_everywhere(place, directory, monkeypatch):
    write_questions(Path("more.jsonl"), 1)
    evaluate_only(directory, Listener(), mcq=("more.jsonl",))
    monkeypatch.chdir(place)
    assert report_only(directory, Listener())


def test_a_folder_that_is_gone_leaves_the_paths_as_they_are(directory):
    environment = directory.read_json("environment.json")
    directory.write_json("environment.json", environment | {"working_directory": "/nowhere/x"})
    assert directory.config().dataset == "rows.jsonl"
    with pytest.raises(InputError, match=r"rows\.jsonl"):
        report_only(directory, Listener())
