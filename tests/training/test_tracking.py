"""W&B through the real client, offline; what is absent costs one line and never the run."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from medcot.config.presets import make_config
from medcot.credentials import has_hub_token, has_wandb_login, prepare_credentials
from medcot.errors import InputError
from medcot.evaluation.interface import ScoredRow, row_to_json
from medcot.records import Event
from medcot.runs.directory import RunDirectory
from medcot.training import wandb_run
from medcot.training.tracking import event_values, start_tracking
from tests.support.wandb_server import faulty_wandb, forget_client

pytestmark = pytest.mark.filterwarnings("ignore")


def event(step):
    return Event(step, 3, 2.0 / step, 1e-4, 0.5, 100 * step, 50.0, 1.0, 3.0)


def open_run(tmp_path, mode, **options):
    config = make_config("tutorial", {"wandb": mode, **options})
    directory = RunDirectory(tmp_path / "run")
    directory.create(config)
    lines = []
    return directory, start_tracking(config, directory, lines.append), lines


def read_offline(directory, kept="offline-run-*", last="exit", patience_s=20.0):
    """What the client's own reader finds in the last run that is kept below ``directory``.

    The client's own process writes the file, and may be behind on a busy machine.
    """
    import wandb

    path = max((directory.path / "wandb").glob(f"{kept}/*.wandb"))
    reader = Path(wandb.__file__).parent / "bin" / "wandb-core"
    command = [reader, "leet", "inspect", "-no-observability", "-json", "-run-file", path]
    calm = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    text = subprocess.check_output(command, text=True, timeout=60, env=calm)
    records = [json.loads(line) for line in text.splitlines()]
    if not any(record["type"] == last for record in records) and patience_s > 0:
        time.sleep(0.5)
        return read_offline(directory, kept, last, patience_s - 0.5)
    return records


def of_type(records, kind):
    return [record[kind] for record in records if record["type"] == kind]


def steps_of(records):
    items = [row["item"] for row in of_type(records, "history")]
    return [item for item in items if "train/loss" in item]


def scored(kind, identity, nll, output=None):
    return row_to_json(ScoredRow(kind, "", identity, f"Why {identity}?", output, nll=nll))


REPORT = {"verdict": {"nll": "improved"}, "before": {"nll": 2.0}, "after": {"nll": 1.0}}


def add_results(directory):
    """What a finished run leaves: scored rows, a report and an adapter."""
    for row in (scored("case", "a", 2.5), scored("fixed", "f", 1.5, "Perhaps.")):
        directory.append(directory.evaluation("before"), row)
    for row in (scored("case", "a", 1.5), scored("fixed", "f", 0.5, "Rest.")):
        directory.append(directory.evaluation("after"), row)
    directory.write_json("report.json", REPORT)
    directory.write_text("report.md", "# Improved\n")
    directory.adapter.mkdir()
    (directory.adapter / "adapter_model.safetensors").write_bytes(b"weights")


def test_an_offline_run_holds_project_job_type_and_every_step(tmp_path):
    directory, tracker, lines = open_run(tmp_path, "offline")
    for step in (1, 2, 3):
        tracker.log(event(step))
    tracker.finish(REPORT)
    records = read_offline(directory)
    run = of_type(records, "run")[0]
    assert run["job_type"] == "training"
    assert run["project"] == "Fine-tune-DeepSeek-R1-Distill-Llama-8B on Medical COT Dataset"
    assert [row["train/loss"] for row in steps_of(records)] == [2.0, 1.0, pytest.approx(2 / 3)]
    assert not lines


def test_a_finished_run_holds_the_table_and_the_report_and_adapter_as_artifacts(tmp_path):
    directory, tracker, lines = open_run(tmp_path, "offline")
    add_results(directory)
    tracker.log(event(1))
    tracker.finish(REPORT)
    records = read_offline(directory)
    files = {
        artifact["name"].partition("-")[0]: [
            one["path"] for one in artifact["manifest"]["contents"]
        ]
        for artifact in of_type(records, "artifact")
    }
    assert files["report"] == ["report.json", "report.md"]
    assert files["adapter"] == ["adapter_model.safetensors"]
    [path] = (directory.path / "wandb").glob("offline-run-*/files/media/table/rows_*.table.json")
    table = json.loads(path.read_text())
    column = table["columns"].index
    assert [row[column("id")] for row in table["data"]] == ["a", "f"]
    assert [row[column("nll before")] for row in table["data"]] == [2.5, 1.5]
    assert [row[column("nll after")] for row in table["data"]] == [1.5, 0.5]
    assert table["data"][1][column("output after")] == "Rest."
    summary = {k: v for one in of_type(records, "summary") for k, v in one["update"].items()}
    assert summary["after/nll"] == 1.0
    assert "improved" in str(summary)
    assert of_type(records, "exit")[0]["exit_code"] == 0
    assert not lines


def test_a_failed_run_is_closed_as_failed_and_sends_no_adapter(tmp_path):
    directory, tracker, lines = open_run(tmp_path, "offline")
    add_results(directory)
    tracker.finish(None, exit_code=1)
    records = read_offline(directory)
    assert not of_type(records, "artifact")
    assert of_type(records, "exit")[0]["exit_code"] == 1
    assert not lines


def test_a_resumed_run_continues_in_its_wandb_run(tmp_path):
    directory, tracker, _ = open_run(tmp_path, "offline")
    tracker.log(event(1))
    tracker.finish(None, exit_code=1)
    first = of_type(read_offline(directory), "run")[0]
    time.sleep(1.1)  # the client names its folder by the second
    again = start_tracking(directory.config(), directory, pytest.fail)
    again.log(event(2))
    again.finish(None)
    records = read_offline(directory)
    second = of_type(records, "run")[0]
    assert first["run_id"] == second["run_id"] == directory.read_json("wandb.json")["id"]
    assert [row["train/loss"] for row in steps_of(records)] == [1.0]


class Client:
    """Takes values as the client of a resumed run does, whose next step is 4."""

    step = 4

    def __init__(self):
        self.rows = []

    def log(self, values, step=None, commit=None):
        self.rows.append((values, step, commit))


def test_wandb_takes_a_validation_that_is_made_up_for_with_the_next_step(tmp_path):
    client = Client()
    sink = wandb_run.WandbRun(client, RunDirectory(tmp_path))
    sink.log({"train/loss": 1.0, "validation/loss": 1.5}, 3)
    sink.log({"train/loss": 0.9}, 4)
    assert client.rows == [
        ({"validation/loss": 1.5}, None, False), ({"train/loss": 0.9}, 4, True),
    ]  # fmt: skip


@pytest.fixture
def own_client():
    forget_client()
    yield
    forget_client()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("refuse", "the run is kept offline in"),
        ("hang", "the run is kept offline in"),
        ("hang later", "did not take everything within 2 s; to send the rest: wandb sync"),
        ("drop later", "the run directory has it all"),
    ],
)
@pytest.mark.usefixtures("own_client")
def test_a_faulty_server_costs_one_line_and_a_bounded_delay(tmp_path, monkeypatch, fault, words):
    monkeypatch.setattr(wandb_run, "INIT_S", 2.0)
    monkeypatch.setattr(wandb_run, "FINISH_S", 2.0)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    with faulty_wandb(fault) as (address, operations):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        began = time.monotonic()
        directory, tracker, lines = open_run(tmp_path, "online")
        add_results(directory)
        for step in (1, 2, 3):
            tracker.log(event(step))
        tracker.finish(REPORT)
        took_s = time.monotonic() - began
    assert operations
    [line] = lines
    assert words in line
    assert took_s < 20  # the limits are 2 s each; the rest is the client's start on a busy machine
    forget_client()  # it writes its file every ten seconds, and at its end
    kept = "offline-run-*" if "offline" in words else "run-*"
    assert len(steps_of(read_offline(directory, kept, last="history"))) == 3


def test_online_without_a_login_is_kept_offline_and_says_so(tmp_path):
    directory, tracker, lines = open_run(tmp_path, "online")
    tracker.finish(None)
    assert len(lines) == 1
    assert "no login" in lines[0]
    assert "offline" in lines[0]
    assert directory.read_json("wandb.json")["mode"] == "offline"


def test_a_key_that_is_refused_leaves_the_run_offline(tmp_path, monkeypatch):
    import wandb

    real = wandb.init

    def refuse_online(**options):
        if options["mode"] == "online":
            raise wandb.errors.AuthenticationError("The API key you provided is either invalid")
        return real(**options)

    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr(wandb, "init", refuse_online)
    directory, tracker, lines = open_run(tmp_path, "online")
    tracker.log(event(1))
    tracker.finish(None)
    [line] = lines
    assert "either invalid; the run is kept offline in" in line
    assert len(steps_of(read_offline(directory))) == 1


@pytest.mark.parametrize("name", ["me/medcot", "a:b", "50%", "x" * 129])
def test_a_project_that_the_client_would_refuse_is_wrong_input(name):
    with pytest.raises(InputError, match="--wandb-project"):
        make_config("demo", {"wandb_project": name})


def test_without_the_package_the_run_continues(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    _, tracker, lines = open_run(tmp_path, "online")
    tracker.log(event(1))
    tracker.finish(None)
    assert len(lines) == 1
    assert "not installed" in lines[0]


def test_off_says_and_writes_nothing(tmp_path):
    directory, tracker, lines = open_run(tmp_path, "off")
    tracker.log(event(1))
    tracker.finish(None)
    assert not lines
    assert not (directory.path / "wandb").exists()


def test_logins_are_found_where_the_tools_keep_them(monkeypatch, scratch_home):
    assert not has_wandb_login()
    assert not has_hub_token()
    (scratch_home / ".netrc").write_text("machine api.wandb.ai login user password abc\n")
    assert has_wandb_login()
    monkeypatch.setenv("HUGGINGFACE_TOKEN", "hf_x")
    monkeypatch.setenv("HF_TOKEN", "")
    prepare_credentials()
    assert has_hub_token()


def read_board(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(directory.path / "tensorboard")).Reload()


def test_tensorboard_reads_the_same_events_and_the_report(tmp_path):
    directory, tracker, lines = open_run(tmp_path, "off", track="tensorboard")
    add_results(directory)
    for step in (1, 2, 3):
        tracker.log(event(step))
    tracker.finish(REPORT)
    board = read_board(directory)
    assert [(one.step, one.value) for one in board.Scalars("train/loss")] == [
        (1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3)),
    ]  # fmt: skip
    assert {tag for tag in board.Tags()["scalars"] if tag.startswith("train/")} == {
        f"train/{name}" for name in asdict(event(1)) if name not in ("step", "validation_loss")
    }
    assert board.Scalars("after/nll")[0].value == 1.0
    assert "report/text_summary" in board.Tags()["tensors"]
    assert not lines


def test_a_validation_is_tracked_apart_from_the_steps():
    found = event_values(replace(event(1), validation_loss=1.5))
    assert found["validation/loss"] == 1.5
    assert "train/validation_loss" not in found


def test_a_resumed_run_replaces_the_steps_that_tensorboard_has_beyond_its_checkpoint(tmp_path):
    directory, tracker, _ = open_run(tmp_path, "off", track="tensorboard")
    for step in (1, 2, 3):
        tracker.log(event(step))
    tracker.finish(None, exit_code=1)
    again = start_tracking(directory.config(), directory, pytest.fail)
    for step in (3, 4):
        again.log(event(step))
    again.finish(None)
    assert [one.step for one in read_board(directory).Scalars("train/loss")] == [1, 2, 3, 4]


def test_trackio_holds_the_same_events_in_its_run_also_after_a_resumption(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils
    from trackio.sqlite_storage import SQLiteStorage

    for module in (utils, sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    directory, tracker, lines = open_run(tmp_path, "off", track="trackio")
    tracker.log(event(1))
    tracker.finish(None, exit_code=1)
    again = start_tracking(directory.config(), directory, lines.append)
    again.log(event(2))
    again.finish(REPORT)
    project = directory.config().wandb_project
    [name] = SQLiteStorage.get_runs(project)
    rows = SQLiteStorage.get_logs(project, name)
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [2.0, 1.0]
    assert rows[-1]["after/nll"] == 1.0
    assert not lines


@pytest.mark.parametrize(("name", "said"), [("tensorboard", "TensorBoard"), ("trackio", "trackio")])
def test_a_tracker_that_is_not_installed_costs_one_line(tmp_path, monkeypatch, name, said):
    monkeypatch.setitem(sys.modules, name, None)
    for loaded in [one for one in sys.modules if one.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, loaded)
    _, tracker, lines = open_run(tmp_path, "off", track=name)
    tracker.log(event(1))
    tracker.finish(REPORT)
    assert lines == [f"{said}: not installed (pip install 'medcot[{name}]')."]


def test_a_disk_that_refuses_costs_one_line(tmp_path):
    directory, tracker, lines = open_run(tmp_path, "off", track="tensorboard")
    (directory.path / "tensorboard").write_text("a file is in the way")
    for step in (1, 2):
        tracker.log(event(step))
    tracker.finish(REPORT)
    [line] = lines
    assert line.startswith("TensorBoard: ")
    assert line.endswith("the run continues without it.")


def test_an_unknown_tracker_is_wrong_input():
    with pytest.raises(InputError, match="--track"):
        make_config("demo", {"track": "mlflow"})
