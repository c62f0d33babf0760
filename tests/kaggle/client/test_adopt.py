"""A kernel pushed and fetched with Kaggle's own client is taken over by its bundle's checksum."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from medcot.errors import InputError, RunFailed
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.adopt import (
    find_downloaded,
    find_push,
    plain_commands,
    read_built_kernel,
    take_output,
)
from medcot.kaggle.client.build import Kernel, KernelOptions, build
from medcot.kaggle.client.push_state import training_pushes
from medcot.runs.directory import RunDirectory
from tests.support.kaggle_scripts import CONFIG, Lines, config_with, end_session, idle_session
from tests.support.kaggle_server import USER, KaggleServer

pytest_plugins = ["tests.support.kaggle_fixtures"]
OUTPUT = {
    "run/report.json": b'{"verdict": {}}\n',
    "run/adapter/adapter_model.safetensors": b"weights",
    "report.html": b"<!doctype html>",
    "loss.png": b"png",
    "session.json": b"{}",
}


def push_plainly(account: Account, kernel: Kernel) -> None:
    """What `kaggle kernels push -p` does."""
    with contextlib.redirect_stdout(io.StringIO()):
        answer = account._api.kernels_push(str(kernel.folder))
    assert not answer.error


@pytest.fixture
def kernel(run: RunDirectory, project: Path) -> Kernel:
    return build(CONFIG, run, USER, KernelOptions(), project)


def test_a_kernel_pushed_with_the_plain_client_is_found(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    kaggle.start = idle_session
    with pytest.raises(InputError, match="no version of ann/medcot-fine-tuning holds this run"):
        find_push(account, run, lines)
    push_plainly(account, kernel)
    sent = find_push(account, run, lines)
    assert (sent.version, sent.checksum, sent.ref) == (1, kernel.checksum, kernel.ref)
    assert lines == ["version 1 of ann/medcot-fine-tuning holds this run: taken over"]
    assert find_push(account, run, lines) == training_pushes(run)[0] == sent
    assert len(lines) == 1


def test_an_older_version_is_found_under_a_newer_one_of_another_run(
    kaggle: KaggleServer,
    account: Account,
    kernel: Kernel,
    run: RunDirectory,
    project: Path,
    lines: Lines,
) -> None:
    kaggle.start = lambda session: session.end("COMPLETE")
    push_plainly(account, kernel)
    other = RunDirectory(run.path.with_name("other"))
    push_plainly(account, build(config_with(seed=1), other, USER, KernelOptions(), project))
    assert find_push(account, run, lines).version == 1
    assert find_push(account, other, lines).version == 2


def test_a_rebuilt_kernel_that_was_not_pushed_leaves_the_recorded_push(
    kaggle: KaggleServer,
    account: Account,
    kernel: Kernel,
    run: RunDirectory,
    project: Path,
    lines: Lines,
) -> None:
    push_plainly(account, kernel)
    first = find_push(account, run, lines)
    build(CONFIG, run, USER, KernelOptions(limit_s=3600), project)
    assert find_push(account, run, lines) == first


def test_output_fetched_with_the_plain_client_arrives_where_fetch_puts_it(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    kaggle.start = lambda session: end_session(session, OUTPUT)
    kaggle.page_size = 2
    push_plainly(account, kernel)
    folder = Path(plain_commands(run, kernel.ref)[2].split()[-1])
    with contextlib.redirect_stdout(io.StringIO()):
        account._api.kernels_output(kernel.ref, str(folder))
    assert find_downloaded(run) == folder
    take_output(run, folder, lines)
    assert (run.path / "report.json").read_bytes() == OUTPUT["run/report.json"]
    assert (run.path / "adapter" / "adapter_model.safetensors").read_bytes() == b"weights"
    assert (run.path / "report.html").exists()
    assert (run.path / "figures" / "loss.png").exists()
    assert (run.path / "kaggle" / "manifest.json").exists()
    assert find_downloaded(run) is None


@pytest.mark.parametrize(
    ("damage", "says"),
    [("loss.png", "loss.png is missing in .* or damaged"), ("", "belongs to another bundle")],
)
def test_output_that_is_damaged_or_of_another_run_is_refused_whole(
    kaggle: KaggleServer,
    account: Account,
    kernel: Kernel,
    run: RunDirectory,
    project: Path,
    lines: Lines,
    damage: str,
    says: str,
) -> None:
    kaggle.start = lambda session: end_session(session, OUTPUT)
    push_plainly(account, kernel)
    folder = run.path / "kaggle" / "downloaded"
    with contextlib.redirect_stdout(io.StringIO()):
        account._api.kernels_output(kernel.ref, str(folder))
    if damage:
        (folder / damage).write_bytes(b"x")
    else:
        build(CONFIG, run, USER, KernelOptions(limit_s=3600), project)
    with pytest.raises(RunFailed, match=says):
        take_output(run, folder, lines)
    assert not run.has("report.json")
    assert (folder / "run" / "report.json").exists()


def test_a_folder_without_a_kernel_has_nothing_to_take_over(run: RunDirectory) -> None:
    assert read_built_kernel(run) is None
    (run.path / "kaggle" / "kernel").mkdir(parents=True)
    assert read_built_kernel(run) is None
