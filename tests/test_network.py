"""What may use the network: no telemetry, nothing beyond this machine when offline, timeouts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from medcot.config.presets import make_config
from medcot.data.dataset import load_dataset
from medcot.errors import InputError
from medcot.evaluation.judge import check_judge
from medcot.exporting.hub import check_repository
from medcot.kaggle.client.account import connect
from medcot.kaggle.client.retry import RetryPolicy
from medcot.network import (
    NO_TELEMETRY,
    OfflineError,
    is_loopback,
    is_offline,
    prepare_network,
    require_network,
)
from tests.support.network_trace import can_trace, hosts_beyond_this_machine, traced
from tests.support.paths import ROOT


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HF_DATASETS_OFFLINE",
        "HF_EVALUATE_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "WANDB_MODE",
    ):
        monkeypatch.setenv(name, "")  # so that what is set below ends with the test
    monkeypatch.setenv("MEDCOT_OFFLINE", "1")
    prepare_network()


def test_telemetry_is_off_unless_the_user_turns_it_on() -> None:
    environ = {"HF_HUB_DISABLE_TELEMETRY": "0"}
    prepare_network(environ)
    assert environ == NO_TELEMETRY | {"HF_HUB_DISABLE_TELEMETRY": "0"}


def test_each_variable_is_one_that_its_library_reads() -> None:
    """A renamed variable would turn telemetry on again without a word; unsloth is not here."""
    packages = {
        "HF_HUB_DISABLE_TELEMETRY": "huggingface_hub/constants.py",
        "HF_UPDATE_DOWNLOAD_COUNTS": "datasets/config.py",
        "DISABLE_SAFETENSORS_CONVERSION": "transformers/modeling_utils.py",
        "WANDB_ERROR_REPORTING": "wandb/env.py",
        "MARIMO_SKIP_UPDATE_CHECK": "marimo/_cli/cli.py",
    }
    assert set(packages) == set(NO_TELEMETRY) - {"UNSLOTH_DISABLE_STATISTICS"}
    import marimo

    installed = Path(marimo.__file__).parent.parent
    for name, file in packages.items():
        assert name in (installed / file).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("value", ["1", "true", "ON", " yes "])
def test_offline_is_on(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDCOT_OFFLINE", value)
    assert is_offline()


@pytest.mark.parametrize("value", ["", "0", "false", "Off", "no"])
def test_offline_is_off(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDCOT_OFFLINE", value)
    assert not is_offline()
    require_network("--judge-url", "https://example.com/v1")


def test_an_unclear_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDCOT_OFFLINE", "maybe")
    with pytest.raises(InputError, match="MEDCOT_OFFLINE: found 'maybe'; expected 1 or 0"):
        is_offline()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LocalHost."]
)
def test_addresses_of_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "10.0.0.1", "::", "localhost.example.com", "127.0.0.1.nip.io"]
)
def test_addresses_beyond_this_machine(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.usefixtures("offline")
def test_offline_no_library_connects_beyond_this_machine() -> None:
    for call in (
        lambda: socket.getaddrinfo("example.com", 443),
        lambda: socket.gethostbyname("example.com"),
        lambda: socket.create_connection(("192.0.2.1", 443), timeout=1),
    ):
        with pytest.raises((OfflineError, RuntimeError), match=r"MEDCOT_OFFLINE|[Hh]ost"):
            call()
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


@pytest.mark.usefixtures("offline")
def test_offline_each_thing_that_needs_the_network_says_so() -> None:
    judge = {"judge_url": "https://api.example.com/v1", "judge_model": "m"}
    with pytest.raises(InputError, match=r"--judge-url .*MEDCOT_OFFLINE"):
        check_judge(make_config("demo", judge))
    check_judge(make_config("demo", judge | {"judge_url": "http://127.0.0.1:1/v1"}))
    with pytest.raises(InputError, match=r"--repo ann/tuned: MEDCOT_OFFLINE"):
        check_repository("ann/tuned")
    with pytest.raises(InputError, match=r"Kaggle: MEDCOT_OFFLINE"):
        connect(RetryPolicy(limit_s=1))
    with pytest.raises(InputError, match=r"someone/rows.*MEDCOT_OFFLINE=1"):
        load_dataset(make_config("demo", {"dataset": "someone/rows"}))


def test_every_request_of_the_hub_has_a_timeout() -> None:
    code = (
        "from medcot.network import limit_hub_requests as limit; limit(); limit()\n"
        "from huggingface_hub import get_session\n"
        "print(get_session().timeout.connect, get_session().timeout.read)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["10.0", "60.0"]


def test_a_trace_tells_this_machine_from_others(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = (
        "1 socket(AF_UNIX, SOCK_STREAM, 0) = 3",
        '1 connect(3, {sa_family=AF_UNIX, sun_path="/run/nscd/socket"}, 110) = -1 ENOENT',
        '1 connect(3, {sa_family=AF_INET, sin_port=htons(8), sin_addr=inet_addr("127.0.0.1")}, 16)',
        '1 connect(4, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("9.9.9.9")}, 16)',
        "1 connect(5, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0),"
        ' inet_pton(AF_INET6, "2600::1", &sin6_addr), sin6_scope_id=0}, 28)',
    )
    log.write_text("\n".join(lines))
    assert hosts_beyond_this_machine(log) == {"9.9.9.9", "2600::1"}


@pytest.mark.skipif(not can_trace(), reason="strace is not installed, or may not trace")
def test_a_training_on_local_files_opens_no_socket_beyond_this_machine(
    tmp_path: Path, tiny_model: Path
) -> None:
    """The hub may be asked and is not: no telemetry, no version, no agent."""
    options = (
        f"--preset demo --model {tiny_model} --samples 8 --steps 1 --batch 2 --test-samples 2"
        " --out run"
    )
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "TRANSFORMERS_"))}
    log = tmp_path / "network.log"
    done = subprocess.run(
        traced(log, sys.executable, "-m", "medcot", "train", *options.split()),
        cwd=tmp_path,
        env=kept | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert hosts_beyond_this_machine(log) == set()
