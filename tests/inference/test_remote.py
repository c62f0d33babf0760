"""`medcot ask --server`: what the client makes of servers that answer, refuse and break off."""

import json
from functools import partial

import httpx
import pytest

from medcot.credentials import SERVE_TOKEN
from medcot.errors import InputError, RunFailed
from medcot.inference.remote import ask_server, read_address

URL = "http://127.0.0.1:8000"


@pytest.fixture
def answering(monkeypatch):
    """Returns a function that lets the server answer; it returns the requests it will have got."""
    client = httpx.Client

    def use(content="", status=200, error=None):
        asked = []

        def handle(request):
            asked.append(request)
            if error is not None:
                raise error
            return httpx.Response(status, text=content)

        transport = httpx.MockTransport(handle)
        monkeypatch.setattr(httpx, "Client", partial(client, transport=transport))
        return asked

    return use


def events(*deltas, ending=None, usage=None):
    made = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    if ending:
        made.append({"choices": [{"delta": {}, "finish_reason": ending}]})
    if usage:
        made.append({"choices": [], "usage": {"completion_tokens": usage}})
    return ": alive\n\n" + "".join(f"data: {json.dumps(one)}\n\n" for one in made)


DELTAS = ({"role": "assistant"}, {"reasoning_content": "A cough"}, {"content": "Flu"})


def test_a_reply_grows_and_the_last_one_is_whole(answering, monkeypatch):
    monkeypatch.setenv(SERVE_TOKEN, "a token of sixteen letters")
    asked = answering(events(*DELTAS, ending="stop", usage=7) + "data: [DONE]\n\n")
    *_, last = ask_server(f"{URL}/v1/", "Why?", 9)
    assert (last.thought, last.answer, last.closed, last.finished) == ("A cough", "Flu", True, True)
    assert last.tokens == 7
    (request,) = asked
    assert request.url == f"{URL}/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer a token of sixteen letters"
    body = json.loads(request.content)
    assert body["messages"] == [{"role": "user", "content": "Why?"}]
    assert body["max_tokens"] == 9


def test_a_reply_that_is_cut_off_says_so(answering):
    answering(events(*DELTAS[:2], ending="length"))
    *_, last = ask_server(URL, "Why?")
    assert (last.closed, last.finished) == (False, False)


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        ('{"error": {"message": "no"}}', 401, "set MEDCOT_SERVE_TOKEN to the token that medcot"),
        ('{"error": {"message": "too long"}}', 400, "status 400: too long"),
        ("<html>\nproxy " + "x" * 9999, 502, "status 502: <html> proxy x"),
    ],
)
def test_a_server_that_refuses_is_one_short_line(answering, content, status, said):
    answering(content, status)
    with pytest.raises(InputError, match=said) as refused:
        list(ask_server(URL, "Why?"))
    assert len(str(refused.value)) < 500
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [events(*DELTAS), "data: {half\n\n", 'data: {"error": {"message": "x"}}\n\n', "data: []\n\n"],
)
def test_an_answer_that_breaks_off_fails(answering, content):
    answering(content)
    with pytest.raises(RunFailed, match="ask: The"):
        list(ask_server(URL, "Why?"))


def test_no_server_and_a_lost_connection_are_told_apart(answering):
    answering(error=httpx.ConnectError("refused"))
    with pytest.raises(InputError, match="nothing answers there; start it: medcot serve"):
        list(ask_server(URL, "Why?"))
    answering(error=httpx.ReadTimeout("silence"))
    with pytest.raises(RunFailed, match="ReadTimeout"):
        list(ask_server(URL, "Why?"))


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://u:p@x", "x\n"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(InputError, match=r"expected http://127\.0\.0\.1:8000"):
        read_address(url)


def test_offline_no_other_machine_is_asked(answering, monkeypatch):
    asked = answering(events(*DELTAS, ending="stop"))
    monkeypatch.setenv("MEDCOT_OFFLINE", "1")
    with pytest.raises(InputError, match="MEDCOT_OFFLINE is on"):
        list(ask_server("http://models.example", "Why?"))
    assert asked == []
    assert list(ask_server(URL, "Why?"))
