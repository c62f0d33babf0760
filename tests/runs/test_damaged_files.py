"""Damaged and hand-edited files of a run: one line that names the file, never a traceback."""

import json
import shutil

import pytest

from medcot.errors import InputError
from medcot.listener import Listener
from medcot.pipeline.run import report_only, run
from medcot.runs.directory import RunDirectory
from medcot.runs.history import bundled_run, list_runs, read_run

FILES = (
    "config.json", "plan.json", "environment.json", "split.json", "status.json", "training.json",
    "report.json", "fingerprints.json", "events.jsonl", "evaluation/before.jsonl",
)  # fmt: skip


def write(text):
    def damage(path):
        path.write_bytes(text)

    return damage


def make_folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def cut(path):
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])


def change_types(path):
    """Every value becomes one of another type."""
    text = path.read_text().split("\n")[0] if path.suffix == ".jsonl" else path.read_text()
    found = json.loads(text)
    path.write_text(json.dumps({name: [{}] for name in found}) + "\n")


DAMAGES = {
    "list": write(b"[1, 2]\n"),
    "number": write(b"7\n"),
    "null": write(b"null\n"),
    "text": write(b'"a"\n'),
    "empty object": write(b"{}\n"),
    "bytes": write(b"\xff\xfe\x00"),
    "deep": write(b"[" * 100_000),
    "empty": write(b""),
    "folder": make_folder,
    "cut": cut,
    "types": change_types,
}


@pytest.fixture
def directory(tmp_path):
    shutil.copytree(bundled_run("en").path, tmp_path / "runs" / "run")
    made = RunDirectory(tmp_path / "runs" / "run")
    missing = {
        "fingerprints.json": {"config": {}, "items": {}, "template": "", "model": {}},
        "split.json": {"train": ["1"], "test": ["2"]},
        "evaluation/before.jsonl": {"kind": "case"},
    }
    for name in missing.keys() - {one for one in missing if made.has(one)}:
        made.append(made.path / name, missing[name])
    return made


def refusal(action):
    """The one line that the action is refused with, "" where it succeeds."""
    try:
        action()
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_in_one_line(directory, name, damage):
    DAMAGES[damage](directory.path / name)
    actions = (
        lambda: read_run(directory.path),
        lambda: directory.read_json(name),
        lambda: list(directory.rows(directory.path / name)),
    )
    lines = [refusal(one) for one in actions[:1] + actions[2 if name.endswith("l") else 1 :][:1]]
    assert all(name.rpartition("/")[2] in line and "\n" not in line for line in lines if line)
    # The notebook's list of runs leaves it out, or shows it; it never fails.
    assert len(list_runs(directory.path.parent)) <= 1


@pytest.mark.parametrize("damage", ["list", "null", "types", "folder", "bytes"])
@pytest.mark.parametrize("name", ["config.json", "status.json", "training.json", "split.json"])
def test_a_file_that_is_relied_on_is_refused(directory, name, damage):
    DAMAGES[damage](directory.path / name)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        directory.config() if name == "config.json" else directory.read_json(name)


@pytest.mark.parametrize("name", ["environment.json", "split.json", "status.json"])
def test_resume_and_report_refuse_a_damaged_file(tmp_path, tiny_model, name):
    from medcot.config.presets import make_config
    from medcot.pipeline.prepare import prepare

    config = make_config("demo", {"model": str(tiny_model), "samples": 8, "mcq": ()})
    made = RunDirectory(tmp_path / "run")
    prepare(config, made, Listener())
    made.lock.release()
    made.write_json("training.json", {"seconds": 1.0})
    (made.path / name).write_text("[]")
    calls = (lambda: run(config, made, resume=True), lambda: report_only(made, Listener()))
    for call in calls if name != "status.json" else ():
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            call()
    # The stage is for people: a run whose stage is unknown is continued all the same.


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", ["list", "empty", "bytes", "folder"])
def test_a_damaged_adapter_is_one_line(tmp_path, tiny_model, name, damage):
    from medcot.config.presets import make_config
    from medcot.engines import loading as models
    from medcot.inference.ask import inference_plan

    config = make_config("demo", {"model": str(tiny_model)})
    plan = inference_plan(config)
    loaded = models.load_base(config, plan)
    models.add_adapter(loaded, config, plan)
    loaded.model.save_pretrained(tmp_path / "adapter")
    DAMAGES[damage](tmp_path / "adapter" / name)
    fresh = models.load_base(config, plan)
    with pytest.raises(InputError, match="adapter"):
        models.load_adapter(fresh, config, plan, tmp_path / "adapter")
