"""`medcot serve` as its users meet it: a real server on loopback, asked by the real client."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from medcot.cli.main import main
from medcot.inference.ask import ask
from tests.serving.conftest import THOUGHT, TUNED_ANSWER

QUESTION = "A cold patient. Why?"


@dataclass
class Running:
    process: subprocess.Popen
    url: str
    token: str
    told: str


@pytest.fixture(scope="module")
def server(served_run, tmp_path_factory):
    """One server for all tests here; its end is a test, too."""
    command = [
        sys.executable,
        "-m",
        "medcot",
        "serve",
        "--run",
        str(served_run.path),
        "--port",
        "0",
    ]
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "HOME": str(home), "MEDCOT_OFFLINE": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        told = ""
        for line in process.stdout:
            told += line
            if "medical advice" in line:
                break
        try:
            url, token = re.search(r"http://\S+/v1", told), re.search(r"only here: (\S+)", told)
            assert None not in (url, token), told + process.stdout.read()
            yield Running(process, url[0], token[1], told)
        finally:
            process.kill()


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url, api_key=server.token, max_retries=0) as client:
        yield client


def asked(client, **options):
    messages = [{"role": "user", "content": QUESTION}]
    return client.chat.completions.create(model="flu", messages=messages, **options)


def test_the_client_streams_thought_and_answer_apart(client):
    with asked(client, stream=True, stream_options={"include_usage": True}) as chunks:
        got = list(chunks)
    deltas = [chunk.choices[0].delta for chunk in got if chunk.choices]
    thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    answers = [delta.content or "" for delta in deltas]
    assert ("".join(thoughts), "".join(answers)) == (THOUGHT, TUNED_ANSWER)
    assert sum(map(bool, thoughts)) > 2, "it came in pieces"
    assert [one.choices[0].finish_reason for one in got if one.choices][-1] == "stop"
    assert got[-1].usage.completion_tokens == 8


def test_the_greedy_answer_is_that_of_medcot_ask(client, served_run):
    *_, own = ask(served_run, QUESTION)
    message = asked(client).choices[0].message
    assert (message.reasoning_content, message.content) == (own.thought, own.answer)
    assert own.answer == TUNED_ANSWER, "the base would say another one"


def test_medcot_ask_asks_the_server(server, monkeypatch, capsys):
    monkeypatch.setenv("MEDCOT_SERVE_TOKEN", server.token)
    main(["ask", "--server", server.url.removesuffix("/v1"), "--json", QUESTION])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["thought"], facts["answer"], facts["tokens"]) == (THOUGHT, TUNED_ANSWER, 8)


def test_two_requests_at_once_get_the_same_answer(client):
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: asked(client).choices[0].message.content, range(2)))
    assert answers == [TUNED_ANSWER] * 2


def test_an_answer_that_is_cut_off_says_so(client):
    choice = asked(client, max_tokens=3).choices[0]
    assert choice.finish_reason == "length"
    assert (choice.message.reasoning_content, choice.message.content) == ("A cough and", "")


def test_a_client_that_leaves_does_not_hold_up_the_next(client):
    with asked(client, stream=True) as chunks:
        next(iter(chunks))
    assert asked(client).choices[0].message.content == TUNED_ANSWER


@pytest.mark.parametrize("path", ["/chat/completions", "/models", "/models/flu", "/other"])
@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "x"}])
def test_without_the_token_nothing_is_told(server, path, header):
    method = "POST" if path.endswith("completions") else "GET"
    answer = httpx.request(method, server.url + path, headers=header, json={}, trust_env=False)
    assert answer.status_code == 401
    assert "flu" not in answer.text


def test_the_client_gets_its_own_errors(server, client):
    with (
        openai.OpenAI(base_url=server.url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    assert [one.id for one in client.models.list()] == ["flu"]
    with pytest.raises(openai.NotFoundError, match="this server has 'flu'"):
        client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="messages is empty"):
        client.chat.completions.create(model="flu", messages=[])
    with pytest.raises(openai.APIStatusError, match="larger than") as large:
        client.chat.completions.create(
            model="flu", messages=[{"role": "user", "content": "x" * 2**20}]
        )
    assert large.value.status_code == 413


def test_what_it_is_not_is_said_once_and_the_token_is_in_no_process_list(server):
    assert server.told.count("not medical advice") == 1
    assert server.told.count(server.token) == 1
    listed = [
        (path / "cmdline").read_bytes() for path in Path("/proc").glob("[0-9]*") if path.is_dir()
    ]
    assert any(b"transformers_process" in line for line in listed)
    assert not any(server.token.encode() in line for line in listed)


def test_a_signal_ends_the_server_and_the_model_s_process(server):
    """Last: it ends the server of this file."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    (child,) = map(int, children.read_text().split())
    start = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    assert time.monotonic() - start < 3
    assert not Path(f"/proc/{child}").exists()
    assert "the server has stopped" in server.process.stdout.read()
