"""Fixtures for the tests of the Kaggle path; a plugin, so no test imports it by name."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medcot.kaggle.client.account import Account, connect
from medcot.kaggle.client.retry import RetryPolicy
from medcot.kaggle.client.sources import PROJECT
from medcot.runs.directory import RunDirectory
from tests.support.kaggle_scripts import Lines, quick_session
from tests.support.kaggle_server import KaggleServer


@pytest.fixture
def kaggle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch_home: Path
) -> Iterator[KaggleServer]:
    """The stand-in, with this process's environment set to reach it."""
    # The client reads the environment when it is imported: each test imports its own.
    for name in [name for name in sys.modules if name.split(".")[0] in ("kaggle", "kagglesdk")]:
        monkeypatch.delitem(sys.modules, name)
    with KaggleServer(tmp_path / "kaggle.com") as server:
        server.start = quick_session
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(scratch_home / ".kaggle"))
        yield server


@pytest.fixture
def naps() -> list[float]:
    """How long the account would have slept, each time."""
    return []


@pytest.fixture
def policy(naps: list[float]) -> RetryPolicy:
    def nap(seconds: float) -> None:
        naps.append(seconds)
        time.sleep(0.01)

    return RetryPolicy(limit_s=900, sleep=nap)


@pytest.fixture
def account(kaggle: KaggleServer, policy: RetryPolicy) -> Account:
    return connect(policy)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "demo")


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout whose package is one line, so that building its kernel takes no time."""
    folder = tmp_path / "project"
    for name in ("medcot", "kaggle"):
        (folder / name).mkdir(parents=True)
    (folder / "medcot" / "__init__.py").write_text('"""Small."""\n', encoding="utf-8")
    shutil.copy(PROJECT / "kaggle" / "kernel.py", folder / "kaggle")
    return folder
