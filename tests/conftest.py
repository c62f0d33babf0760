"""Every test gets a scratch HOME and no account; loopback is the only network."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fork_server import ForkServer, fork_server
from tests.support.paths import DEV_DATA, REAL_CACHE

# Before any library reads them: offline, silent, deterministic.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_SILENT="true",
    NO_COLOR="1",
    # Two workers on two cores: more threads would only wait for one another.
    OMP_NUM_THREADS="1",
)

FROZEN = [0]
"""How many modules were imported each time that the collector's objects were frozen."""

SLOWEST_FILES = (
    "tests/kaggle/test_training.py", "tests/notebook/test_app_browser.py",
    "tests/pipeline/test_worker.py", "tests/engines/fsdp/test_model.py",
    "tests/notebook/test_static_site.py", "tests/pipeline/test_run.py",
    "tests/notebook/test_app.py", "tests/pipeline/test_interruptions.py",
    "tests/pipeline/test_added_sets.py", "tests/kaggle/session/test_main.py",
    "tests/test_planted_tokens.py", "tests/stats/test_paired.py", "tests/data/test_store.py",
    "tests/exporting/test_gguf.py", "tests/notebook/test_minimal.py",
    "tests/pipeline/test_study.py", "tests/pipeline/test_seeds.py",
)  # fmt: skip
"""Begun first: with two workers a long file at the end would leave one of them idle."""

ACCOUNTS = (
    "HF_TOKEN",
    "HUGGINGFACE_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "KAGGLE_USERNAME",
    "KAGGLE_KEY",
    "KAGGLE_API_TOKEN",
    "OPENAI_API_KEY",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the slowest files first, in their own order."""
    place = {name: number for number, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


@pytest.fixture(autouse=True)
def scratch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HOME of the test's own. Only the converted bundled model is shared between tests."""
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name in ACCOUNTS or name.startswith("MEDCOT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MEDCOT_CACHE", str(REAL_CACHE))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    return home


@pytest.fixture(scope="module", autouse=True)
def frozen_imports() -> None:
    """Keep the collector from what earlier tests imported, which would be most of its work.

    A run collects three times, and each time would cost 0.7 s with PyTorch and TRL imported.
    """
    freeze_imports()


def freeze_imports() -> None:
    if len(sys.modules) - FROZEN[-1] > 100:
        gc.collect()
        gc.freeze()
        FROZEN.append(len(sys.modules))


@pytest.fixture
def dev_data() -> Path:
    """A folder of real rows, which are no part of the project."""
    if not (DEV_DATA / "cot_en.jsonl").exists():
        pytest.skip(f"no real rows in {DEV_DATA} (set MEDCOT_DEV_DATA)")
    return DEV_DATA


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Starts programs without the twelve seconds that their imports take."""
    with fork_server(tmp_path_factory.mktemp("forks")) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 150,000 weights with a part of the bundled tokenizer, as a local folder."""
    from tests.support.fakes import make_tiny_model

    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    freeze_imports()
    return folder
