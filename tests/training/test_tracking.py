"""W&B through the real client, offline; what is absent costs one line and never the run."""

import struct
import sys
import time

import pytest

from medcot.config.presets import make_config
from medcot.credentials import has_hub_token, has_wandb_login, prepare_credentials
from medcot.errors import InputError
from medcot.records import Event
from medcot.runs.directory import RunDirectory
from medcot.training.tracking import start_tracking

pytestmark = pytest.mark.filterwarnings("ignore")


def event(step):
    return Event(step, 3, 2.0 / step, 1e-4, 0.5, 100 * step, 50.0, 1.0, 3.0)


def open_run(tmp_path, mode):
    config = make_config("tutorial", {"wandb": mode})
    directory = RunDirectory(tmp_path / "run")
    directory.create(config)
    lines = []
    return directory, start_tracking(config, directory, lines.append), lines


BLOCK = 32_768  # the client keeps its records in LevelDB's log format, after a header of 7 bytes


def read_records(path):
    """The records of an offline run's file, as bytes."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def read_offline(directory, patience_s=20.0):
    """The run and the logged history in the one offline run below ``directory``.

    The client's own process writes the file, and may be behind on a busy machine.
    """
    run, history = _read_offline(directory)
    if run is None and patience_s > 0:
        time.sleep(0.5)
        return read_offline(directory, patience_s - 0.5)
    return run, history


def _read_offline(directory):
    from wandb.proto import wandb_internal_pb2

    (path,) = (directory.path / "wandb").glob("offline-run-*/*.wandb")
    run, history = None, []
    for data in read_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        run = record.run if kind == "run" and run is None else run
        if kind == "history":
            items = record.history.item
            history.append({i.key or ".".join(i.nested_key): i.value_json for i in items})
    return run, history


def test_an_offline_run_holds_project_job_type_and_every_step(tmp_path):
    directory, tracker, lines = open_run(tmp_path, "offline")
    for step in (1, 2, 3):
        tracker.log(event(step))
    tracker.finish({"verdict": {"nll": "improved"}, "before": {"nll": 2}, "after": {"nll": 1}})
    run, history = read_offline(directory)
    assert run.job_type == "training"
    assert run.project == "Fine-tune-DeepSeek-R1-Distill-Llama-8B on Medical COT Dataset"
    assert [float(row["train/loss"]) for row in history] == [2.0, 1.0, pytest.approx(2 / 3)]
    assert not lines


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
    _, history = read_offline(directory)
    assert len(history) == 1


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
