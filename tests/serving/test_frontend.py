"""The layer before the model server, over a model server that says what the test wants."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest

from medcot.data.prompts import ask as ask_prompt
from medcot.serving.access import Access
from medcot.serving.backends import Backend
from medcot.serving.chat_request import Refusal, Turn, read_chat_request
from medcot.serving.frontend import MOST_AT_ONCE, PROMPT_HEADER, make_application
from medcot.serving.target import Target, open_run

KEY = {"Authorization": "Bearer token"}
SAYS = ["A cou", "gh</thi", "nk>\n\nFl", "u."]


@pytest.fixture
def target(served_run):
    return open_run(served_run)


def event(text, ending=None):
    return f"data: {json.dumps({'choices': [{'text': text, 'finish_reason': ending}]})}\n\n"


class Model:
    """A model server: keeps what it was asked, and streams ``parts``."""

    def __init__(self, parts, status=200):
        self.parts, self.status, self.asked, self.closed = parts, status, [], 0

    async def handle(self, request):
        self.asked.append(json.loads(await request.aread()))
        return httpx.Response(self.status, content=self.stream())

    async def stream(self):
        try:
            for part in self.parts:
                await asyncio.sleep(0)
                if isinstance(part, asyncio.Event):
                    await part.wait()
                else:
                    yield part.encode()
        finally:
            self.closed += 1


@asynccontextmanager
async def serving(target, model, tmp_path, monkeypatch):
    """A client of the application; ``application`` is there for tests that speak ASGI."""
    made = httpx.MockTransport(model.handle)
    monkeypatch.setattr(httpx, "AsyncHTTPTransport", lambda **_: made)
    backend = Backend("test", (), tmp_path / "s")
    application = make_application(target, Access("token", given=True), backend)
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
        client.application = application
        yield client


@pytest.fixture
def post(target, tmp_path, monkeypatch):
    """Returns a function that posts a request and returns the response, with the model."""

    def send(body, parts=None, status=200, served=target):
        model = Model(
            parts or [*map(event, SAYS), event("", "stop"), "data: [DONE]\n\n"], status=status
        )

        async def once():
            async with serving(served, model, tmp_path, monkeypatch) as client:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                return await client.post("/v1/chat/completions", content=content, headers=KEY)

        return asyncio.run(once()), model

    return send


def user(text, **options):
    return {"messages": [{"role": "user", "content": text}], **options}


def test_a_question_becomes_the_prompt_that_the_run_measured(post, target):
    answer, model = post(user("Why?"))
    template = target.tokenizer.chat_template
    assert "<|im_start|>" in template
    expected = ask_prompt("Why?", "chat", "en", lambda turns, thinks: (
        f"<|im_start|>user\n{turns[0].content}<|im_end|>\n<|im_start|>assistant\n"
    ))  # fmt: skip
    (asked,) = model.asked
    assert asked == {
        "model": "model", "prompt": expected, "max_tokens": 24, "temperature": 0.0, "stream": True,
    }  # fmt: skip
    assert answer.headers[PROMPT_HEADER] == "measured"
    message = answer.json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("A cough", "Flu.")


def test_turns_and_a_system_prompt_are_rendered_and_said_to_be_unmeasured(post):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Flu."},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ]
    answer, model = post({"messages": turns})
    (asked,) = model.asked
    begin = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\nFlu.<|im_end|>\n<|im_start|>user\nSure?\n\nThink step by step"
    )
    assert asked["prompt"].startswith(begin)
    assert asked["prompt"].endswith("<think>\n")
    assert answer.headers[PROMPT_HEADER] == "unmeasured"
    _, model = post({"messages": [{"role": "system", "content": " "}, turns[1]]})
    assert "system" not in model.asked[0]["prompt"], "clients send an empty one"


def test_a_prompt_with_no_place_for_turns_refuses_them(post, target):
    config = target.config.model_copy(update={"style": "tutorial"})
    tutorial = Target("run", target.path, target.directory, config)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    answer, model = post({"messages": turns}, served=tutorial)
    assert answer.status_code == 400
    assert "holds one question" in answer.json()["error"]["message"]
    assert model.asked == []
    _, model = post(user("Why?"), served=tutorial)
    assert model.asked[0]["prompt"].startswith("You are given a task")


def test_a_prompt_longer_than_the_model_is_refused(post):
    answer, _ = post(user("word " * 4000))
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([event("A")], 200),
        (['data: {"error": "out of memory in /home/x"}\n\n'], 200),
        (["data: {half\n\n"], 200),
        (["no such model in /home/x"], 404),
    ],
)
def test_a_model_server_that_fails_is_an_error_without_its_words(post, parts, status):
    for stream in (False, True):
        answer, _ = post(user("Why?", stream=stream), parts=parts, status=status)
        assert "server_failed" in answer.text
        assert "/home" not in answer.text
        assert "[DONE]" not in answer.text


def test_a_client_that_leaves_ends_the_generation(target, tmp_path, monkeypatch):
    """In the middle of a stream, and while it waits for the whole answer."""

    async def leave(stream):
        model, sent = Model([event("A"), asyncio.Event()]), asyncio.Event()
        bodies = [
            {"type": "http.request", "body": json.dumps(user("Why?", stream=stream)).encode()}
        ]

        async def receive():
            if bodies:
                return bodies.pop()
            if stream:
                await sent.wait()
            await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message):
            if b"reasoning_content" in message.get("body", b""):
                sent.set()

        async with serving(target, model, tmp_path, monkeypatch) as client:
            scope = {
                "type": "http", "method": "POST", "path": "/v1/chat/completions", "headers":
                [(b"authorization", b"Bearer token")], "query_string": b"", "http_version": "1.1",
                "asgi": {"version": "3.0", "spec_version": "2.3"},
            }  # fmt: skip
            await asyncio.wait_for(client.application(scope, receive, send), 5)
            await asyncio.sleep(0.01)
        assert model.closed == 1

    asyncio.run(leave(stream=True))
    asyncio.run(leave(stream=False))


def test_more_requests_than_it_can_hold_are_told_to_wait(target, tmp_path, monkeypatch):
    async def crowd():
        gate = asyncio.Event()
        model = Model([event("A"), gate, event("", "stop")])
        async with serving(target, model, tmp_path, monkeypatch) as client:

            async def one():
                body = user("Why?")
                return await client.post("/v1/chat/completions", json=body, headers=KEY)

            tasks = [asyncio.create_task(one()) for _ in range(MOST_AT_ONCE)]
            while len(model.asked) < MOST_AT_ONCE:
                await asyncio.sleep(0)
            refused = await one()
            gate.set()
            done = await asyncio.gather(*tasks)
            return refused.status_code, {answer.status_code for answer in done}, await one()

    refused, others, later = asyncio.run(crowd())
    assert (refused, others, later.status_code) == (503, {200}, 200)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        ({}, "messages is empty"),
        ({"messages": "x"}, "messages is empty"),
        ({"messages": ["x"]}, "not an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role 'tool'"),
        ({"messages": [{"role": "user", "content": None}]}, "is not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "is not text"),
        ({"messages": [{"role": "user", "content": " "}]}, "last message is empty"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "not the user's"),
        ({"messages": [{"role": "system", "content": ""}]}, "not the user's"),
        ({"messages": [{"role": "user", "content": "x"}] * 201}, "at most 200"),
        (user("x", model="gpt-5\n" * 999), "There is no model"),
        (user("x", n=2), "n is not supported"),
        (user("x", tools=[{}]), "tools is not supported"),
        (user("x", stop=["a"]), "stop is not supported"),
        (user("x", response_format={"type": "json_object"}), "response_format is not"),
        (user("x", stream="yes"), "true or false"),
        (user("x", temperature=3), "from 0 to 2"),
        (user("x", temperature=True), "from 0 to 2"),
        (user("x", top_p="1"), "from 0 to 1"),
        (user("x", max_tokens=10**9), "from 1 to 32768"),
        (user("x", max_completion_tokens=1.5), "from 1 to 32768"),
        (user("x", seed=-1), "from 0 to"),
    ],
)
def test_what_cannot_be_answered_is_one_short_line(body, said):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(Refusal, match=said) as refused:
        read_chat_request(content, "flu")
    assert refused.value.status in (400, 404)
    assert len(str(refused.value)) <= 400
    assert "\n" not in str(refused.value)


def test_what_changes_nothing_is_taken():
    request = read_chat_request(
        json.dumps(user("x", model="flu", n=1, tools=[], user="me", stop=None, temperature=0.5,
                        max_tokens=7, seed=1, frequency_penalty=0, store=True)).encode(), "flu"
    )  # fmt: skip
    assert request.turns == (Turn("user", "x"),)
    assert (request.temperature, request.max_tokens, request.seed) == (0.5, 7, 1)


def test_a_token_is_compared_whole():
    access = Access("token", given=True)
    assert access.allows("bearer token")
    for wrong in ("", "token", "Basic token", "Bearer", "Bearer toke", "Bearer token2", "Bearer ü"):
        assert not access.allows(wrong)
