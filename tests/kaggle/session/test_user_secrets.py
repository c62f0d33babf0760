"""Secrets on the whole way: what the wire carried, the screen showed and the disk kept."""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medcot.errors import InputError
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.build import KernelOptions
from medcot.kaggle.client.orchestrate import KaggleRun, run_on_kaggle
from medcot.kaggle.session.user_secrets import SecretNotAttached, find_secret, secret_needs
from medcot.runs.directory import RunDirectory
from tests.support.kaggle_scripts import Lines, config_with, end_session
from tests.support.kaggle_server import KaggleServer
from tests.support.kaggle_session import Session

pytest_plugins = ["tests.support.kaggle_fixtures"]

TOKENS = st.text(string.ascii_letters + string.digits + "-_+/=. \"'\\ß", min_size=12).map(
    lambda text: f"Zq7{text[:40]}J9"
)
PLACES = ("environment", "config", "data")


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(token=TOKENS, place=st.sampled_from(PLACES))
def test_a_planted_token_is_in_nothing_that_was_sent_shown_or_kept(
    kaggle: KaggleServer,
    account: Account,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    place: str,
) -> None:
    def leaky_session(session: Session) -> None:
        session.say(f"HTTP 401 for {token}\n")
        session.say(f"a traceback with {json.dumps(token)} in it\n")
        end_session(session, {"run/report.json": b'{"verdict": {}}\n'})

    kaggle.kernels.clear()
    kaggle.received.clear()
    kaggle.start = leaky_session
    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:
        patch.setenv("SOME_API_KEY", token)
        rows, run = Path(folder) / "rows.jsonl", RunDirectory(Path(folder) / "run")
        question = f"why {token}?" if place == "data" else "why?"
        rows.write_text(json.dumps({"Question": question}) + "\n", encoding="utf-8")
        name = f"medcot {token}" if place == "config" else "medcot"
        config = config_with(dataset=str(rows), wandb_job_type=name)
        said, shown, refusal = Lines(), Lines(), ""
        try:
            run_on_kaggle(
                KaggleRun(account, config, run, KernelOptions(), said, shown, interval_s=0.01)
            )
        except InputError as error:
            refusal = str(error)
        files = [path for path in run.path.rglob("*") if path.is_file()]
        kept = "\n".join(path.read_text("utf-8", errors="replace") for path in files)
    assert ("SOME_API_KEY" in refusal) == (place != "environment")
    assert bool(kaggle.sessions()) == (place == "environment")
    wire = b"\n".join(kaggle.received).decode("utf-8", errors="replace")
    for text in (refusal, said.text, shown.text, kept, wire):
        assert token not in text
        assert json.dumps(token)[1:-1] not in text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_the_secrets_data_set_may_begin_with_a_mark(
    encoding: str, tmp_path: Path
) -> None:
    (tmp_path / "wandb.txt").write_text("0123456789abcdef\r\n", encoding=encoding)
    found = find_secret(secret_needs()[1], {}, not_attached, [tmp_path])
    assert found.value == "0123456789abcdef"


def test_a_blank_secret_is_looked_for_further(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("0123456789abcdef", encoding="utf-8")
    need = secret_needs()[1]
    assert find_secret(need, {need.variable: " "}, lambda _: " \n", [tmp_path]).value
    assert find_secret(need, {}, lambda _: "").line.startswith("WANDB_API_KEY: empty; ")


def not_attached(_label: str) -> str:
    raise SecretNotAttached("not attached")
