"""Inside the kernel: secrets, machine, how a session ends. The pushed script really runs."""

from __future__ import annotations

import ast
import contextlib
import json
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from medcot.errors import RunFailed
from medcot.hardware.gpu_specs import Gpu
from medcot.hardware.machine import Machine
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.build import Kernel, KernelOptions, build
from medcot.kaggle.client.orchestrate import KaggleRun, probe_secrets, run_on_kaggle, sync_wandb
from medcot.kaggle.client.push import push
from medcot.kaggle.client.push_state import training_pushes
from medcot.kaggle.client.wait import FinalStatus, wait
from medcot.kaggle.session import steps
from medcot.kaggle.session.job import JobSpec, RunSettings
from medcot.kaggle.session.machine import check_gpus, count_processes, make_training_command
from medcot.kaggle.session.subprocesses import ExitStatus
from medcot.kaggle.session.user_secrets import SecretNotAttached, find_secret, secret_needs
from medcot.paths import PACKAGE
from medcot.runs.directory import RunDirectory
from tests.support.kaggle_scripts import CONFIG, Lines, config_with, end_session, quick_session
from tests.support.kaggle_server import USER, KaggleServer
from tests.support.kaggle_session import Session

pytest_plugins = ["tests.support.kaggle_fixtures"]
HUB_VALUE, WANDB_VALUE = "hf_" + "ThisIsTheHubToken12345", "0123456789abcdef" * 2 + "01234567"
T4 = Gpu("Tesla T4", 14.6, (7, 5), 50.0)


def machine(*gpus: Gpu) -> Machine:
    return Machine(gpus, 4, 29.0, "Linux")


@pytest.fixture
def probe(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines
) -> Callable[..., list[str]]:
    """Push the probe and let it run; its answer."""
    kaggle.start = Session.run

    def ask(options: KernelOptions | None = None, **environ: str) -> list[str]:
        kaggle.session_options = {"environ": environ}
        return probe_secrets(
            KaggleRun(account, CONFIG, run, options or KernelOptions(), lines, interval_s=0.1)
        )

    return ask


def test_the_probe_says_what_is_attached_and_what_is_not(
    kaggle: KaggleServer, probe: Callable[..., list[str]]
) -> None:
    kaggle.secrets = {"HUGGINGFACE_TOKEN": HUB_VALUE}
    assert probe() == [
        "HUGGINGFACE_TOKEN: ok (Kaggle secret, HUGGINGFACE_TOKEN)",
        "WANDB_API_KEY: not attached; W&B writes offline, to be synced after the fetch",
    ]
    [body] = kaggle.calls_of("SaveKernel")
    assert not body.get("enableGpu")
    assert not body.get("machineShape")
    # Boxes are ticked between two probes: the same bundle asks again.
    kaggle.secrets["wandb"] = WANDB_VALUE
    assert probe()[1] == "WANDB_API_KEY: ok (Kaggle secret, wandb)"
    texts = [session.text() for session in kaggle.sessions()]
    assert all(value not in text for text in texts for value in (HUB_VALUE, WANDB_VALUE))


def test_the_environment_comes_before_the_secret_store(
    kaggle: KaggleServer, probe: Callable[..., list[str]]
) -> None:
    kaggle.secrets = {"HUGGINGFACE_TOKEN": "another"}
    answer = probe(HF_TOKEN=HUB_VALUE)
    assert answer[0] == "HUGGINGFACE_TOKEN: ok (environment, HF_TOKEN)"


def test_secrets_are_looked_up_under_the_labels_that_the_user_gave(
    kaggle: KaggleServer, probe: Callable[..., list[str]]
) -> None:
    kaggle.secrets = {"my-hub": HUB_VALUE, "my-wandb": WANDB_VALUE}
    options = KernelOptions(job=JobSpec(hub_labels=("my-hub",), wandb_labels=("my-wandb",)))
    assert probe(options) == [
        "my-hub: ok (Kaggle secret, my-hub)", "my-wandb: ok (Kaggle secret, my-wandb)",
    ]  # fmt: skip


def test_a_private_data_set_is_the_last_resort(
    kaggle: KaggleServer, probe: Callable[..., list[str]]
) -> None:
    files = {"HUGGINGFACE_TOKEN.txt": f"{HUB_VALUE}\n".encode(), "wandb": WANDB_VALUE.encode()}
    kaggle.add_dataset("ann/my-keys", files)
    assert probe(KernelOptions(job=JobSpec(secrets_dataset="ann/my-keys"))) == [
        "HUGGINGFACE_TOKEN: ok (private data set, HUGGINGFACE_TOKEN.txt)",
        "WANDB_API_KEY: ok (private data set, wandb)",
    ]


def test_an_unreachable_secret_store_is_named(
    kaggle: KaggleServer, probe: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kaggle.fail("secret", status=500, times=1)
    kaggle.secrets = {"HUGGINGFACE_TOKEN": HUB_VALUE}
    assert "ok (Kaggle secret" in probe()[0]


def test_without_a_session_token_nothing_is_attached(probe: Callable[..., list[str]]) -> None:
    [hub, _] = probe(KAGGLE_USER_SECRETS_TOKEN="of-another-session")
    assert "the secret store did not answer" in hub


def test_a_probe_is_not_taken_for_a_training_session(
    kaggle: KaggleServer, probe: Callable[..., list[str]], run: RunDirectory
) -> None:
    probe()
    assert training_pushes(run) == []


def test_a_lookup_never_shows_its_value() -> None:
    def ask(label: str) -> str:
        if label == "wandb":
            return WANDB_VALUE
        raise SecretNotAttached("not attached")

    for need in secret_needs():
        found = find_secret(need, {}, ask)
        assert WANDB_VALUE not in repr(found) + found.line
    assert found.value == WANDB_VALUE


def test_a_failed_run_comes_home_with_its_reason_and_without_its_secrets(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines
) -> None:
    """The secret is also the model's name, so that the tools' own errors repeat it."""
    kaggle.start = Session.run
    kaggle.secrets = {"HUGGINGFACE_TOKEN": "nobody/Has-This-Model-12345"}
    shown, config = Lines(), config_with(model="nobody/Has-This-Model-12345")
    result = run_on_kaggle(
        KaggleRun(account, config, run, KernelOptions(), lines, shown, interval_s=0.1)
    )
    [session] = kaggle.sessions()
    assert session.status == "ERROR"
    assert (result.outcome, result.exit_code) == ("failed", 2)
    assert "--model" in shown.text
    assert "Has-This-Model-12345" not in session.text()
    assert "[hidden: HF_TOKEN]" in session.text()  # the name that the training was given it by
    assert run.config() == config
    # The same thing would happen again: nothing is pushed unless it is asked for.
    again = run_on_kaggle(
        KaggleRun(account, config, run, KernelOptions(), lines, Lines(), interval_s=0.1)
    )
    assert again.outcome == "failed"
    assert len(kaggle.sessions()) == 1


def test_a_run_that_is_over_is_not_pushed_again_even_if_the_project_changed(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines
) -> None:
    first = run_on_kaggle(KaggleRun(account, CONFIG, run, KernelOptions(), lines, interval_s=0.1))
    other_bundle = KernelOptions(limit_s=3600)
    again = run_on_kaggle(KaggleRun(account, CONFIG, run, other_bundle, lines, interval_s=0.1))
    assert first == again
    assert "has ended this run (done): not pushed again" in lines.text
    assert len(kaggle.calls_of("SaveKernel")) == 1
    run_on_kaggle(KaggleRun(account, CONFIG, run, other_bundle, lines, interval_s=0.1), again=True)
    assert len(kaggle.calls_of("SaveKernel")) == 2


def test_a_training_that_was_killed_says_so_in_error_json(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines
) -> None:
    """As by the kernel's out-of-memory killer: the training is gone, the session goes on."""

    def kill_the_training(session: Session) -> bool:
        assert session.process is not None
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(session.process.pid).children():
                if "run" in child.cmdline():
                    child.kill()
        return False

    kaggle.start = Session.run
    kaggle.session_options = {"kill_when": kill_the_training}
    result = run_on_kaggle(KaggleRun(account, CONFIG, run, KernelOptions(), lines, interval_s=0.1))
    assert (result.outcome, result.exit_code) == ("failed", 1)
    error = run.read_json("error.json")
    assert error["stage"] == "training"
    assert error["message"].startswith("signal 9 ended the training")
    assert run.read_json("kaggle/manifest.json")["exit_code"] == 137
    assert "memory may have run out" in lines.text
    # A session that ends well leaves no reason of an older one behind.
    kaggle.session_options, kaggle.start = {}, quick_session
    retried = KaggleRun(account, CONFIG, run, KernelOptions(), lines, interval_s=0.1)
    assert run_on_kaggle(retried, again=True).outcome == "done"
    assert not run.has("error.json")


def bare_kernel(kernel: Kernel, root: Path) -> subprocess.CompletedProcess[str]:
    """The kernel's script on a Python that has no packages at all, before anything is installed."""
    command = [sys.executable, "-I", "-S", str(kernel.folder / "kernel.py")]
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(root), "KAGGLE_ROOT": str(root)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)


def test_the_kernel_looks_around_with_the_standard_library_alone(
    run: RunDirectory, tmp_path: Path
) -> None:
    kernel = build(CONFIG, run, USER, KernelOptions(job=JobSpec(task="secrets")))
    ended = bare_kernel(kernel, tmp_path / "kaggle")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "no torch" in ended.stdout
    assert "HUGGINGFACE_TOKEN: not attached (no kaggle_secrets on this machine)" in ended.stdout


def test_what_nobody_foresaw_is_an_error_with_a_manifest_too(
    run: RunDirectory, tmp_path: Path
) -> None:
    """Here an image without `packaging`, which every real one has."""
    ended = bare_kernel(build(CONFIG, run, USER, KernelOptions()), tmp_path / "kaggle")
    assert ended.returncode == 1
    left = tmp_path / "kaggle" / "working"
    error = json.loads((left / "error.json").read_text(encoding="utf-8"))
    assert error["stage"] == "session"
    assert "No module named 'packaging'" in error["message"]
    manifest = json.loads((left / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["outcome"], manifest["exit_code"]) == ("failed", 1)
    assert "error.json" in manifest["files"]


AFTER_INSTALLING = {
    "upload.py": {"huggingface_hub"}, "user_secrets.py": {"kaggle_secrets"},
    "figures.py": {"vl_convert"}, "page.py": {"IPython"},
}  # fmt: skip
ALLOWED = (
    "credentials",
    "network",
    "hardware",
    "records",
    "errors",
    "paths",
    "catalog",
    "kaggle.session",
)


def test_a_session_imports_the_standard_library_packaging_and_light_modules_alone() -> None:
    for path in sorted((PACKAGE / "kaggle" / "session").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
        }
        ours = {name for name in names if name.split(".")[0] == "medcot"} - {"medcot"}
        assert all(name.startswith(tuple(f"medcot.{one}" for one in ALLOWED)) for name in ours)
        others = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
        known = {"medcot", "packaging"} | AFTER_INSTALLING.get(path.name, set())
        assert others <= known, path.name


def smi(folder: Path, name: str, capability: str) -> str:
    """A PATH whose nvidia-smi reports one GPU."""
    folder.mkdir()
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\necho '0, GPU-1, {name}, 16000, {capability}'\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return f"{folder}:/usr/bin:/bin"


def test_a_gpu_that_cannot_be_used_ends_the_session_at_once(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines, tmp_path: Path
) -> None:
    kaggle.start = Session.run
    path = smi(tmp_path / "bin", "Tesla P100-PCIE-16GB", "6.0")
    kaggle.session_options = {"environ": {"PATH": path}}
    result = run_on_kaggle(
        KaggleRun(account, CONFIG, run, KernelOptions(gpu=True), lines, interval_s=0.1)
    )
    assert (result.outcome, result.exit_code) == ("failed", 1)
    error = run.read_json("error.json")
    assert error["stage"] == "machine"
    assert "Tesla P100" in error["message"]
    assert "GPU T4" in error["remedy"]
    assert "P100" in lines.text


def test_a_gpu_that_was_not_given_or_is_too_old_is_refused() -> None:
    with pytest.raises(RunFailed, match=r"none is attached.*quota"):
        check_gpus(machine(), wanted=True)
    check_gpus(machine(), wanted=False)
    old = Gpu("Tesla P100-PCIE-16GB", 15.9, (6, 0), 18.0)
    with pytest.raises(RunFailed, match=r"compute capability 6\.0; 7\.0 is the oldest.*GPU T4"):
        check_gpus(machine(old), wanted=True)
    check_gpus(machine(T4, T4), wanted=True)


def test_the_command_starts_as_many_processes_as_it_is_told() -> None:
    places = (Path("config.json"), Path("run"))
    both = make_training_command(2, *places, resume=True)
    assert both[1:6] == ["-m", "medcot.kaggle.session.launch", "2", "-m", "medcot"]
    assert both[-1] == "--resume"
    one = make_training_command(1, *places, resume=False)
    assert one[1:4] == ["-m", "medcot", "run"]
    assert "--resume" not in one


@pytest.mark.parametrize(
    ("preset", "batch", "gpus", "processes"),
    [
        ("kaggle-t4", 8, 2, 2),
        ("kaggle-t4x2", 8, 2, 2),
        ("kaggle-t4", 8, 1, 1),
        ("kaggle-t4", 3, 2, 1),
        ("tutorial", 8, 2, 1),
        ("demo", 4, 0, 1),
    ],
)
def test_both_t4s_train_where_the_batch_can_be_divided(
    preset: str, batch: int, gpus: int, processes: int
) -> None:
    settings = RunSettings(preset, "smollm2-135m", "off", batch)
    assert count_processes(settings, gpus) == processes
    assert count_processes(replace(settings, seeds=3), gpus) == 1


@pytest.mark.parametrize(("seeds", "visible"), [(1, "0"), (3, None)])
def test_a_single_process_sees_one_gpu_and_a_run_of_several_seeds_both(
    seeds: int,
    visible: str | None,
    tmp_path: Path,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str | None] = []

    def run(*_: object, environ: dict[str, str], **__: object) -> ExitStatus:
        seen.append(environ.get("CUDA_VISIBLE_DEVICES"))
        return ExitStatus(0, False)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(steps, "run_command", run)
    monkeypatch.setattr(steps, "detect_machine", lambda: machine(T4, T4))
    settings = RunSettings("tutorial", "smollm2-135m", "off", 8, seeds=seeds)
    session = steps.Session(tmp_path, tmp_path, JobSpec(), settings, "", time.time(), lines)
    assert steps.train(session, []).code == 0
    assert seen == [visible]


def test_a_bundle_in_a_data_set_runs_like_one_in_the_script(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines
) -> None:
    kaggle.start = Session.run
    options = KernelOptions(code="dataset", job=JobSpec(task="secrets"))
    sent = push(account, build(CONFIG, run, USER, options), run, lines)
    assert wait(account, sent, lines, interval=0.1)[0] is FinalStatus.DONE
    assert "medcot session 1: done" in kaggle.sessions()[0].text()


def test_a_missing_data_set_ends_the_kernel_with_one_line(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines
) -> None:
    kaggle.start = Session.run
    kernel = build(CONFIG, run, USER, KernelOptions(code="dataset"))
    text = (kernel.folder / "kernel.py").read_text(encoding="utf-8")
    kaggle.answer("SaveKernel", {"slug": kernel.ref, "newTitle": "x", "text": text})
    session = kaggle.sessions()[0]
    list(session.follow_log())
    assert session.status == "ERROR"
    assert "no data set with code " in session.text()


def test_a_later_session_without_the_earlier_output_does_not_start_anew(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines
) -> None:
    kaggle.start = Session.run
    kernel = build(CONFIG, run, USER, KernelOptions(job=JobSpec(session=2)))
    sent = push(account, kernel, run, lines)
    assert wait(account, sent, lines, interval=0.1)[0] is FinalStatus.FAILED
    assert "no output of this run is mounted" in kaggle.sessions()[0].text()


def test_a_session_without_progress_ends_the_chain(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines
) -> None:
    kaggle.start = lambda session: session.end("ERROR", "out of memory")
    with pytest.raises(RunFailed, match=r"session 1 ended .killed. without progress"):
        run_on_kaggle(
            KaggleRun(account, CONFIG, run, KernelOptions(), lines, interval_s=0.1), until_done=True
        )
    assert len(kaggle.sessions()) == 1


def pause_at(step: int) -> Callable[[Session], None]:
    """Sessions that save a checkpoint at ``step`` and end before their limit."""

    def pause(session: Session) -> None:
        saved = {f"run/checkpoints/checkpoint-{step}/trainer_state.json": b"{}"}
        end_session(session, saved, outcome="paused", code=130)

    return pause


def test_quota_that_ends_between_two_sessions_loses_nothing(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines, project: Path
) -> None:
    def pause_and_use_up(session: Session) -> None:
        pause_at(5)(session)
        kaggle.hours_used = 30

    kaggle.start = pause_and_use_up
    options = KernelOptions(gpu=True)
    with pytest.raises(RunFailed, match=r"0\.0 of 30 GPU hours.*finished work is kept"):
        run_on_kaggle(
            KaggleRun(account, CONFIG, run, options, lines, interval_s=0.1), until_done=True
        )
    assert run.last_checkpoint() is not None
    kaggle.hours_used, kaggle.start = 0, quick_session
    result = run_on_kaggle(
        KaggleRun(account, CONFIG, run, options, lines, interval_s=0.1), until_done=True
    )
    assert result.outcome == "done"
    sessions = [push.session for push in training_pushes(run)]
    assert sessions == [1, 2]
    assert kaggle.calls_of("SaveKernel")[1]["kernelDataSources"] == [f"{USER}/medcot-fine-tuning"]


def test_output_that_is_listed_late_is_waited_for(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines
) -> None:
    kaggle.fail("ListKernelSessionOutput", body={"files": []}, times=3)
    result = run_on_kaggle(KaggleRun(account, CONFIG, run, KernelOptions(), lines, interval_s=0.1))
    assert result.outcome == "done"
    assert run.has("report.json")


def test_an_offline_wandb_run_is_sent_or_said_how_to(run: RunDirectory, lines: Lines) -> None:
    (run.path / "wandb" / "offline-run-1").mkdir(parents=True)
    sync_wandb(run, lines)
    assert lines == [f"W&B was offline; to send it: wandb sync {run.path}/wandb/offline-run-1"]
    (run.path / "wandb" / "offline-run-1" / "run-1.wandb.synced").touch()
    sync_wandb(run, lines)
    assert len(lines) == 1


def test_the_reason_of_a_failed_run_is_said_last(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines
) -> None:
    """`push.py fetch` and the notebook's panel show that line as the reason."""
    error = {"stage": "training", "message": "It broke.", "remedy": "Mend it."}

    def fail(session: Session) -> None:
        saved = {
            "run/error.json": json.dumps(error).encode(),
            "run/wandb/offline-run-1/run.wandb": b"log",
        }
        end_session(session, saved, outcome="failed", code=1, status="ERROR")

    kaggle.start = fail
    result = run_on_kaggle(KaggleRun(account, CONFIG, run, KernelOptions(), lines, interval_s=0.1))
    assert result.outcome == "failed"
    assert lines[-2].startswith("W&B was offline")
    assert lines[-1] == "training: It broke. Mend it."


def test_a_session_that_a_person_cancelled_is_not_pushed_again_by_itself(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines
) -> None:
    def cancel(session: Session) -> None:
        saved = {"run/checkpoints/checkpoint-3/trainer_state.json": b"{}"}
        end_session(session, saved, status="CANCEL_ACKNOWLEDGED", manifest=False)

    kaggle.start = cancel
    result = run_on_kaggle(
        KaggleRun(account, CONFIG, run, KernelOptions(), lines, interval_s=0.1), until_done=True
    )
    assert (result.outcome, result.exit_code, result.step) == ("cancelled", 3, 3)
    assert len(kaggle.sessions()) == 1
    kaggle.start = quick_session
    again = run_on_kaggle(
        KaggleRun(account, CONFIG, run, KernelOptions(), lines, interval_s=0.1), until_done=True
    )
    assert again.outcome == "done"
    assert [push.session for push in training_pushes(run)] == [1, 2]


def test_an_interrupted_run_is_taken_up_where_it_was(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines
) -> None:
    kernel = build(CONFIG, run, USER, KernelOptions())
    push(account, kernel, run, lines)
    result = run_on_kaggle(KaggleRun(account, CONFIG, run, KernelOptions(), lines, interval_s=0.1))
    assert result.outcome == "done"
    assert len(kaggle.sessions()) == 1
