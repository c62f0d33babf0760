"""`python kaggle/push.py`: the commands as a person gives them, against the stand-in."""

from __future__ import annotations

import io
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medcot.cli.doctor import Finding, examine_machine
from medcot.cli.kaggle import cli as commands
from medcot.cli.main import main as medcot
from medcot.kaggle.client.account import connect
from medcot.kaggle.client.local_login import Login, find_login
from medcot.kaggle.client.orchestrate import AccountCheck, check_account
from medcot.notebook.kaggle_panel import look_at_account
from medcot.paths import PACKAGE
from medcot.runs.directory import RunDirectory
from tests.support.kaggle_scripts import end_session, quick_session
from tests.support.kaggle_server import KEY, USER, KaggleServer
from tests.support.kaggle_session import Session
from tests.support.paths import ROOT

pytest_plugins = ["tests.support.kaggle_fixtures"]


MAIN = runpy.run_path(str(ROOT / "kaggle" / "push.py"))["main"]


@dataclass(frozen=True)
class Answer:
    returncode: int
    stdout: str
    stderr: str


def push_py(*arguments: str, folder: Path, main: Callable[[list[str]], None] = MAIN) -> Answer:
    """What push.py does in ``folder``, without the second that a new process takes."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with chdir(folder), redirect_stdout(out), redirect_stderr(err):
        try:
            main(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


def push_py_alone(*arguments: str, folder: Path) -> Answer:
    """The same as a process of its own, as a person runs it."""
    command = [sys.executable, str(ROOT / "kaggle" / "push.py"), *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return Answer(ended.returncode, ended.stdout, ended.stderr)


def facts(answer: Answer) -> dict[str, Any]:
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_no_option_means_two_things() -> None:
    for name, command in commands.commands.items():
        options = [each for one in command.params for each in (*one.opts, *one.secondary_opts)]
        assert len(options) == len(set(options)), name


def test_build_needs_no_account_and_no_network(tmp_path: Path) -> None:
    answer = push_py_alone("build", "--owner", "ann", "--out", "r", "--rank", "8", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "r/kaggle/kernel" in answer.stdout
    metadata = json.loads((tmp_path / "r/kaggle/kernel/kernel-metadata.json").read_text("utf-8"))
    assert metadata["id"] == "ann/medcot-fine-tuning"
    assert metadata["machine_shape"] == "NvidiaTeslaT4"
    config = RunDirectory(tmp_path / "r").config()
    assert (config.preset, config.rank) == ("kaggle-t4", 8)


def test_the_clients_own_command_accepts_the_folder(kaggle: KaggleServer, tmp_path: Path) -> None:
    push_py("build", "--owner", USER, "--out", "r", "--preset", "demo", folder=tmp_path)
    command = [sys.executable, "-m", "kaggle", "kernels", "push", "-p", "r/kaggle/kernel"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    [body] = kaggle.calls_of("SaveKernel")
    assert answer.returncode == 0, answer.stderr
    assert "surprising" not in answer.stdout
    assert (body["isPrivate"], body["kernelType"]) == (True, "script")


def test_build_prints_the_plain_clients_commands_and_wait_and_fetch_take_over(
    kaggle: KaggleServer, tmp_path: Path
) -> None:
    arguments = ["--owner", USER, "--out", "r", "--preset", "demo"]
    built = push_py("build", *arguments, folder=tmp_path)
    assert "\n  kaggle kernels push -p r/kaggle/kernel\n" in built.stdout
    assert "\n  kaggle kernels status ann/medcot-fine-tuning\n" in built.stdout
    assert "kaggle kernels output ann/medcot-fine-tuning -p r/kaggle/downloaded" in built.stdout
    early = push_py("wait", "--out", "r", folder=tmp_path)
    assert early.returncode == 2
    assert "push it: kaggle kernels push -p r/kaggle/kernel" in early.stderr
    command = [sys.executable, "-m", "kaggle", "kernels", "push", "-p", "r/kaggle/kernel"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=60)
    waited = push_py("wait", "--out", "r", "--interval", "0.1", folder=tmp_path)
    assert waited.returncode == 0, waited.stderr
    assert "version 1 of ann/medcot-fine-tuning holds this run: taken over" in waited.stdout
    fetched = push_py("fetch", "--out", "r", folder=tmp_path)
    assert fetched.returncode == 0, fetched.stderr
    [line] = fetched.stdout.splitlines()
    assert line.startswith("version 1: ")
    assert line.endswith("Report: r/report.md")


def test_run_is_build_push_wait_and_fetch(kaggle: KaggleServer, tmp_path: Path) -> None:
    arguments = ["--preset", "demo", "--out", "r", "--interval", "0.1", "--json"]
    answer = push_py_alone("run", *arguments, folder=tmp_path)
    assert facts(answer)["outcome"] == "done"
    assert "step 1 of 2" in answer.stderr
    assert (tmp_path / "r" / "report.json").exists()
    assert KEY not in answer.stdout + answer.stderr
    again = push_py("run", "--out", "r", "--interval", "0.1", "--json", folder=tmp_path)
    assert facts(again)["outcome"] == "done"
    assert len(kaggle.sessions()) == 1


def test_push_wait_and_fetch_find_each_other_by_the_run_directory(
    kaggle: KaggleServer, tmp_path: Path
) -> None:
    sent = facts(push_py("push", "--preset", "demo", "--json", folder=tmp_path))
    assert sent["version"] == 1
    assert sent["out"].startswith("runs/demo-")
    waited = push_py("wait", "--follow", "--interval", "0.1", folder=tmp_path)
    assert waited.returncode == 0
    assert "step 1 of 2" in waited.stdout
    fetched = push_py("fetch", "--json", folder=tmp_path)
    assert facts(fetched)["exit_code"] == 0
    assert (tmp_path / sent["out"] / "report.md").exists()


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        ("ERROR", "exit code 1", 1),
        ("CANCEL_ACKNOWLEDGED", "", 3),
        ("ERROR", "Session timed out", 4),
    ],
)
def test_wait_ends_with_a_code_for_each_ending(
    kaggle: KaggleServer, tmp_path: Path, status: str, message: str, code: int
) -> None:
    kaggle.start = lambda session: session.end(status, message)
    push_py("push", "--preset", "demo", "--out", "r", folder=tmp_path)
    answer = push_py("wait", "--out", "r", "--interval", "0.1", folder=tmp_path)
    assert answer.returncode == code


def test_a_paused_run_says_how_to_go_on_and_goes_on(kaggle: KaggleServer, tmp_path: Path) -> None:
    def pause(session: Session) -> None:
        rows = b"".join(b'{"step": %d}\n' % step for step in range(1, 6))
        state = {"run/checkpoints/checkpoint-5/trainer_state.json": b"{}"}
        end_session(session, {"run/events.jsonl": rows} | state, outcome="paused", code=130)

    kaggle.start = pause
    arguments = ["--preset", "demo", "--out", "r", "--interval", "0.1"]
    first = push_py("run", *arguments, folder=tmp_path)
    assert first.returncode == 4
    assert "paused at step 5" in first.stdout
    assert "run --until-done --out r" in first.stdout
    kaggle.start = quick_session
    second = push_py("run", "--until-done", "--out", "r", "--interval", "0.1", folder=tmp_path)
    assert second.returncode == 0, second.stderr
    assert kaggle.calls_of("SaveKernel")[1]["kernelDataSources"] == [f"{USER}/medcot-fine-tuning"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["build", "--rank", "0", "--owner", "ann"], "--rank: found"),
        (["build", "--title", "no", "--owner", "ann"], "--title"),
        (["build", "--hours", "99", "--owner", "ann"], "--hours"),
        (["wait"], "--out: no run found in runs/"),
        (["fetch", "--out", "nowhere"], "nowhere"),
        (["run", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    answer = push_py(*arguments, folder=tmp_path)
    assert answer.returncode == 2
    assert says in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_no_credentials_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    answer = push_py("run", "--preset", "demo", folder=tmp_path)
    assert answer.returncode == 2
    assert "kaggle.com/settings" in answer.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["push", "run"])
def test_another_owner_than_the_account_is_refused_before_anything_is_sent(
    command: str, kaggle: KaggleServer, tmp_path: Path
) -> None:
    answer = push_py(command, "--preset", "demo", "--owner", "Ann", folder=tmp_path)
    assert answer.returncode == 2
    assert "--owner Ann: these are the credentials of ann" in answer.stderr
    assert not kaggle.calls_of("SaveKernel")


def test_a_project_name_that_wandb_refuses_is_refused_by_build(tmp_path: Path) -> None:
    options = ["--owner", "ann", "--wandb-project", "a/b:c"]
    answer = push_py("build", "--preset", "kaggle-t4", *options, folder=tmp_path)
    assert answer.returncode == 2
    assert "--wandb-project" in answer.stderr


def test_secrets_are_probed_by_one_command(kaggle: KaggleServer, tmp_path: Path) -> None:
    kaggle.start = Session.run
    kaggle.secrets = {"wandb": "0123456789abcdef0123456789abcdef01234567"}
    answer = push_py("secrets", "--interval", "0.1", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "HUGGINGFACE_TOKEN: not attached" in answer.stdout
    assert "WANDB_API_KEY: ok (Kaggle secret, wandb)" in answer.stdout


def doctors_finding(*, online: bool = False) -> Finding:
    return next(one for one in examine_machine(online=online) if one.name == "Kaggle")


def test_a_login_is_found_where_kaggles_client_looks_for_it(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert find_login(home) is None
    assert find_login(home | {"KAGGLE_USERNAME": "u"}) is None
    assert find_login(home | {"KAGGLE_API_TOKEN": "t"}) == Login("KAGGLE_API_TOKEN")
    both = {"KAGGLE_USERNAME": "u", "KAGGLE_KEY": "k"}
    assert find_login(home | both) == Login("KAGGLE_KEY", "u")
    for folder in (".kaggle", ".config/kaggle", "chosen"):
        environ = home | ({"KAGGLE_CONFIG_DIR": str(tmp_path / folder)} if folder[0] != "." else {})
        path = tmp_path / folder / "kaggle.json"
        path.parent.mkdir(parents=True)
        path.write_text('{"username": "bob", "key": "x"}', encoding="utf-8")
        assert find_login(environ) == Login(str(path), "bob")
        path.unlink()


def test_doctor_and_notebook_learn_of_the_account_in_one_line(
    kaggle: KaggleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "signed in as ann, 27.0 of 30 GPU hours left this week"
    assert check_account() == look_at_account() == AccountCheck(True, said)
    assert doctors_finding(online=True) == Finding("Kaggle", "ok", said)
    asked = len(kaggle.calls)
    assert doctors_finding().detail == "login found as ann, KAGGLE_KEY (--online asks Kaggle)"
    assert len(kaggle.calls) == asked
    monkeypatch.setenv("KAGGLE_KEY", "of-somebody-else")
    check = check_account()
    assert doctors_finding(online=True).detail == check.line
    assert not check.ready
    assert "credentials" in check.line
    assert "of-somebody-else" not in check.line


@pytest.mark.parametrize("fetched_by", ["plain client", "medcot"])
def test_medcot_report_takes_over_what_kaggles_own_client_has_pushed(
    kaggle: KaggleServer, tmp_path: Path, fetched_by: str
) -> None:
    report = (PACKAGE / "runs" / "finished" / "demo-en" / "report.json").read_bytes()
    kaggle.start = lambda session: end_session(
        session, {"run/report.json": report, "run/report.md": b"# ok\n", "report.html": b"<p>"}
    )
    push_py("build", "--owner", USER, "--out", "r", "--preset", "demo", folder=tmp_path)
    account = connect()
    with redirect_stdout(io.StringIO()), chdir(tmp_path):
        account._api.kernels_push("r/kaggle/kernel")
        if fetched_by == "plain client":
            account._api.kernels_output(f"{USER}/medcot-fine-tuning", "r/kaggle/downloaded")
    answer = push_py("report", "--run", "r", folder=tmp_path, main=medcot)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(report)["verdict"]["sentence"] in answer.stdout
    assert (tmp_path / "r" / "report.html").read_bytes() == b"<p>"
