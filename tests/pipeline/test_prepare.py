"""What planning refuses: data and models that no run could use, in one line with a way out."""

import json
import shutil

import pytest

from medcot.catalog import Message
from medcot.config.presets import make_config
from medcot.errors import InputError
from medcot.hardware.machine import detect_machine, named_machine
from medcot.pipeline import prepare
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


def copy_of(model, folder):
    return shutil.copytree(model, folder)


def test_a_tokenizer_without_end_token_is_refused(tiny_model, tmp_path):
    folder = copy_of(tiny_model, tmp_path / "endless")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    with pytest.raises(InputError, match="no end token; name the model's eos_token"):
        plan(folder)


def test_more_tokens_than_embeddings_are_refused_with_both_numbers(tiny_model, tmp_path):
    folder = copy_of(tiny_model, tmp_path / "few")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 1000}))
    with pytest.raises(InputError, match=r"4,096 tokens, the model 1,000 embeddings"):
        plan(folder)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:50])


def point(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")


def link_to_a_device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("model.safetensors", cut, "it is cut or damaged; fetch it again"),
        ("model.safetensors", cut_in_the_header, "a cut or damaged file of 50 bytes"),
        ("model.safetensors", point, "a Git LFS pointer of 50 bytes"),
        ("tokenizer.json", point, "git lfs pull"),
        ("config.json", link_to_a_device, "not a regular file"),
        ("chat_template.jinja", link_to_a_device, "not a regular file"),
    ],
)
def test_a_damaged_file_of_a_model_is_named_before_anything_reads_it(
    tiny_model, tmp_path, name, spoil, says
):
    folder = copy_of(tiny_model, tmp_path / "model")
    spoil(folder / name)
    with pytest.raises(InputError) as refusal:
        plan(folder)
    assert f"--model {folder / name}: " in str(refusal.value)
    assert says in str(refusal.value)


def without_hub(monkeypatch, code):
    def refuse(_config):
        raise InputError("--dataset a/b", Message(code, {"variable": "X"}), "use a local file")

    monkeypatch.setattr(prepare, "load_dataset", refuse)


@pytest.mark.parametrize("code", ["error_no_connection", "error_offline_mode"])
def test_without_a_network_a_plan_assumes_lengths_and_says_so(monkeypatch, code):
    without_hub(monkeypatch, code)
    made = plan_only(make_config("kaggle-t4"), named_machine("T4"))
    assert made.device == "cuda"
    assert made.time_s["total"] > 60
    first = str(made.warnings[0])
    assert first.startswith("Lengths assumed: ")
    assert "788 tokens on average and 2,048 at most" in first


def test_a_plan_for_a_data_set_that_is_wrong_is_refused(monkeypatch):
    without_hub(monkeypatch, "error_no_file")
    with pytest.raises(InputError, match="no such file"):
        plan_only(make_config("kaggle-t4"), named_machine("T4"))
