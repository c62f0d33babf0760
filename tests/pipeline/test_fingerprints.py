"""What was scored before is compared with the same after, or the run is refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from medcot.config.presets import make_config
from medcot.errors import InputError, RunFailed
from medcot.listener import Listener
from medcot.pipeline.run import evaluate_only, run
from medcot.runs.directory import RunDirectory

QUESTIONS = [
    {
        "id": f"q{n}",
        "question": f"Which of the valves number {n} lies between left atrium and ventricle?",
        "options": {"A": "mitral", "B": "aortic", "C": "tricuspid"},
        "answer_idx": "A",
    }
    for n in range(4)
]


def write_questions(path, questions):
    path.write_text("".join(json.dumps(one) + "\n" for one in questions))


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """A finished run with a question file and a model folder of its own."""
    place = tmp_path_factory.mktemp("prints")
    shutil.copytree(tiny_model, place / "model")
    write_questions(place / "exam.jsonl", QUESTIONS)
    values = {
        "model": str(place / "model"), "mcq": (str(place / "exam.jsonl"),),
        "samples": 8, "steps": 2, "batch": 2, "test_samples": 4, "generate_samples": 1,
        "max_new_tokens": 4,
    }  # fmt: skip
    run(make_config("demo", values), RunDirectory(place / "run"))
    return place


@pytest.fixture
def place(whole, tmp_path):
    """A copy of the finished run. Model and questions keep their paths and are restored."""
    shutil.copytree(whole / "run", tmp_path / "run")
    saved = shutil.copytree(whole / "model", tmp_path / "saved")
    yield whole
    write_questions(whole / "exam.jsonl", QUESTIONS)
    shutil.rmtree(whole / "model")
    shutil.copytree(saved, whole / "model")


def evaluate_again(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.remove("evaluation/after.jsonl")
    return evaluate_only(directory, Listener())


def test_unchanged_inputs_give_the_same_report(place, tmp_path):
    before = (tmp_path / "run" / "report.json").read_bytes()
    evaluate_again(tmp_path)
    assert (tmp_path / "run" / "report.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer_idx": "B"}, "'q2' changed"),
        ({"question": "Which valve has two leaflets and lies on the left?"}, "'q2' changed"),
        ({"id": "q9"}, "'q2' is gone"),
    ],
)
def test_another_question_is_refused_by_its_id(place, tmp_path, change, said):
    questions = [one | change if one["id"] == "q2" else one for one in QUESTIONS]
    write_questions(place / "exam.jsonl", questions)
    with pytest.raises(InputError, match=said):
        evaluate_again(tmp_path)


def test_an_added_question_is_refused(place, tmp_path):
    extra = QUESTIONS[0] | {"id": "q8", "question": "Which vessel leaves the left ventricle, then?"}
    write_questions(place / "exam.jsonl", [*QUESTIONS, extra])
    with pytest.raises(InputError, match="'q8' was added"):
        evaluate_again(tmp_path)


def test_other_weights_of_the_base_model_are_refused_by_file(place, tmp_path):
    path = place / "model" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.01
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.safetensors changed"):
        evaluate_again(tmp_path)


def test_a_file_that_was_only_touched_is_the_same_model(place, tmp_path):
    (place / "model" / "model.safetensors").touch()
    evaluate_again(tmp_path)


def test_another_chat_template_is_refused(place, tmp_path):
    path = place / "model" / "chat_template.jinja"
    path.write_text(path.read_text() + "{# later #}")
    with pytest.raises(InputError, match="template"):
        evaluate_again(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 0.5), ("seed", 1), ("steps", 1), ("rank", 4), ("max_new_tokens", 9)],
)
def test_an_edited_config_is_refused_by_its_field(place, tmp_path, name, value):
    directory = RunDirectory(tmp_path / "run")
    directory.write_json("config.json", directory.read_json("config.json") | {name: value})
    with pytest.raises(InputError, match=f"{name} is {value}, but the run began with"):
        evaluate_again(tmp_path)


def test_less_memory_is_no_other_run(place, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.write_json("config.json", directory.read_json("config.json") | {"micro_batch": 1})
    evaluate_again(tmp_path)


def test_another_adapter_is_refused(place, tmp_path):
    path = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    save_file({name: one * 2 for name, one in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(InputError, match="not the one that this run trained"):
        evaluate_again(tmp_path)


def test_an_adapter_of_nan_is_never_scored(place, tmp_path):
    """Also in a run from before fingerprints were kept."""
    path = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, path, {"format": "pt"})
    (tmp_path / "run" / "fingerprints.json").unlink()
    with pytest.raises(RunFailed, match="NaN or infinity"):
        evaluate_again(tmp_path)


def test_prompts_that_differ_are_never_compared(place, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    path = directory.evaluation("after")
    rows = list(directory.rows(path))
    rows[0]["prompt"] += " Today is another day."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=f"{rows[0]['id']}.*its prompt is not the one of"):
        evaluate_only(directory, Listener())


def test_a_loss_that_is_no_number_gives_no_verdict(place, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    path = directory.evaluation("after")
    rows = list(directory.rows(path))
    rows[0]["nll"] = rows[0]["nll_sum"] = float("nan")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RunFailed, match="not finite"):
        evaluate_only(directory, Listener())


def test_a_destroyed_training_fails_with_the_gradients_name(tiny_model, tmp_path):
    values = {
        "model": str(tiny_model), "samples": 8, "steps": 6, "batch": 2, "rank": 1, "alpha": 512,
        "learning_rate": 1.0, "warmup_steps": 0, "test_samples": 2, "generate_samples": 0,
    }  # fmt: skip
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(RunFailed, match=r"(loss|gradient's norm) became|NaN or infinity"):
        run(make_config("demo", values), directory)
    assert not directory.has("report.json")
    assert directory.stage() == "failed"
