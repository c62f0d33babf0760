"""Secrets are resolved in one place, and planted ones are found on no surface."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medcot.catalog import Message
from medcot.config.presets import make_config
from medcot.config.schema import build_config
from medcot.credentials import (
    JUDGE_LOGIN,
    RESOLVED,
    TOKENS,
    hub_token,
    judge_headers,
    prepare_credentials,
    redact,
    redact_values,
    redacted_output,
    resolve_secret,
)
from medcot.errors import InputError, RunFailed, one_line
from medcot.listener import Listener
from medcot.notebook.results import describe_error
from medcot.pipeline import run as pipeline
from medcot.runs.directory import RunDirectory
from tests.support.hub_server import GOOD_TOKEN, Repo, serve_hub
from tests.support.paths import ROOT

TOKEN = "hf_Planted" + "0123456789abcdefghij"
PASSWORD = "pass-word-of-the-judge"
DATA = "someone/medical"


@pytest.mark.parametrize("name", RESOLVED)
def test_space_around_a_secret_is_no_part_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f"\ufeff {TOKEN}\n")
    assert resolve_secret(name) == TOKEN
    prepare_credentials()
    assert os.environ[name] == TOKEN


@pytest.mark.parametrize("name", RESOLVED)
def test_a_blank_secret_is_absent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "  \n")
    assert resolve_secret(name) is None
    prepare_credentials()
    assert name not in os.environ


@pytest.mark.parametrize("name", RESOLVED)
@pytest.mark.parametrize("middle", ["\n", "\r\n", "ß", "\0x"])
def test_what_no_header_can_carry_is_refused_by_name(name: str, middle: str) -> None:
    value = f"{TOKEN}{middle}{TOKEN}"
    with pytest.raises(InputError) as refused:
        prepare_credentials({name: value})
    assert refused.value.where == name
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("name", TOKENS)
def test_each_name_of_the_hubs_token_reaches_its_libraries(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, TOKEN)
    assert hub_token() == TOKEN
    monkeypatch.setenv("HF_TOKEN", "  " if name != "HF_TOKEN" else TOKEN)
    prepare_credentials()
    assert os.environ["HF_TOKEN"] == TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # so that it is removed after the test


def test_a_login_in_the_judges_address_is_no_part_of_the_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(JUDGE_LOGIN, "")
    address = f"http://ann:{PASSWORD}@127.0.0.1:9/v1"
    config = make_config("demo", {"judge_url": address, "judge_model": "m"})
    assert config.judge_url == "http://127.0.0.1:9/v1"
    assert judge_headers()["Authorization"].startswith("Basic ")
    old = build_config(config.model_dump() | {"judge_url": address}, where="config.json")
    assert old == config


def test_a_judge_is_sent_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    import openai

    from medcot.evaluation.judge import connect

    monkeypatch.setenv(JUDGE_LOGIN, f"ann:{PASSWORD}")
    seen: dict[str, object] = {}
    real = openai.OpenAI

    def client(**options: object) -> object:
        made = real(**options)  # type: ignore[arg-type]
        seen.update(made.default_headers, retries=made.max_retries, timeout=made.timeout)
        return made

    monkeypatch.setattr(openai, "OpenAI", client)
    connect("http://127.0.0.1:9/v1", "m")
    assert str(seen["Authorization"]).startswith("Basic ")
    assert seen["retries"]
    assert seen["timeout"]


def test_known_values_are_hidden_plain_quoted_and_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", 'quote"inside-1234567890')
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for text in (TOKEN, json.dumps(os.environ["WANDB_API_KEY"]), one_line("x" * 150 + TOKEN)):
        assert "[hidden: " in redact_values(text), text
    for text in (f"see http://ann:{PASSWORD}@host/x", f"ALL_PROXY=socks5://a:{PASSWORD}@h:1"):
        assert PASSWORD not in redact_values(text)


@pytest.mark.parametrize("length", [300, 5000])
def test_a_token_longer_than_a_files_name_is_hidden(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_USER_SECRETS_TOKEN", "x1y" * length)
    assert redact_values("of " + "x1y" * length) == "of [hidden: KAGGLE_USER_SECRETS_TOKEN]"


def test_text_without_secrets_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "ollama")
    text = "judge ollama/llama at http://host:8000/v1?a=b@c … token: 12"
    assert redact(text) == redact_values(text) == text


def test_whatever_is_printed_is_redacted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def print_and_fail() -> None:
        print("a line with", TOKEN)
        print("a warning with", TOKEN, file=sys.stderr)
        raise ValueError(f"Illegal header value b'Bearer {TOKEN}\\n'")

    with pytest.raises(SystemExit) as ended, redacted_output():
        print_and_fail()
    shown = capsys.readouterr()
    assert ended.value.code == 1
    assert TOKEN not in shown.out + shown.err
    assert "a line with" in shown.out
    assert "Illegal header value" in shown.err
    assert sys.stdout is not None
    print("after")  # the streams are those from before
    assert capsys.readouterr().out == "after\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError(TOKEN),
        InputError("--model", TOKEN, TOKEN),
        RunFailed("data", TOKEN, TOKEN),
        InputError("--rank", Message("error_found", {"value": TOKEN}), "other"),
    ],
    ids=["unforeseen", "input", "failed", "message"],
)
def test_the_notebook_shows_no_secret_in_an_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert TOKEN not in repr(describe_error(error))


def planted_files(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and (TOKEN.encode() in path.read_bytes() or PASSWORD in path.name)
    ]


def test_a_failed_run_leaves_no_secret_in_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    directory = RunDirectory(tmp_path / "run")
    config = make_config("demo", {"wandb_job_type": f"with {TOKEN}"})

    def fail() -> None:
        directory.create(config)
        directory.append(directory.events, {"step": 1, "note": TOKEN})
        logging.getLogger("medcot.pipeline.run").warning("a log line with %s", TOKEN)
        raise ValueError(f"Illegal header value b'Bearer {TOKEN}\\n'")

    with pytest.raises(RunFailed), pipeline.recorded(directory, Listener(), resume=False):
        fail()
    assert directory.has("error.json")
    assert "a log line with" in directory.log.read_text(encoding="utf-8")
    assert planted_files(tmp_path) == []


def medcot(folder: Path, variables: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Run the command line in a process of its own: exit code, and all it printed."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and not name.lower().endswith("_proxy")
    }
    places = {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "medcot", *arguments],
        cwd=folder,
        env=kept | places | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_no_command_shows_a_token_whatever_the_hub_does(tmp_path: Path) -> None:
    rows = b"".join(
        json.dumps(
            {"Question": f"What of patient {n}?", "Complex_CoT": "Hm.", "Response": f"R{n}."}
        ).encode()
        + b"\n"
        for n in range(20)
    )
    card = b"---\nconfigs:\n- config_name: en\n  data_files: en.json\n---\n"
    repos = [
        Repo(DATA, {"README.md": card, "en.json": rows}, trouble="gated"),
        Repo("someone/broken", {"README.md": card, "en.json": rows}, trouble="broken"),
    ]
    spellings = {"refused": TOKEN, "with a line feed": f"{TOKEN}\n", "cut": f"{TOKEN}\n{TOKEN}"}
    with serve_hub(*repos) as server:
        good = {"HF_ENDPOINT": server.url, "HF_TOKEN": f" {GOOD_TOKEN}\n"}
        assert medcot(tmp_path, good, "data", DATA)[0] == 0
        for what, value in spellings.items():
            variables = {"HF_ENDPOINT": server.url, "HF_TOKEN": value}
            for arguments in (["data", DATA], ["data", "someone/broken"]):
                code, shown = medcot(tmp_path, variables, *arguments)
                assert code in (1, 2), (what, arguments, shown)
                assert TOKEN not in shown, (what, arguments)
                assert "Traceback" not in shown, (what, arguments, shown)
    assert planted_files(tmp_path) == []
