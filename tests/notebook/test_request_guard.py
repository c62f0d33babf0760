"""Who is let in: names, origins, tokens, cookies, sizes. The application behind it is a stub."""

import asyncio
from urllib.parse import urlencode

import pytest

from medcot.notebook import request_guard
from medcot.notebook.request_guard import LARGEST_BODY, RequestGuard

HOST = "127.0.0.1:2718"
TOKEN = "a token of more than sixteen letters"


class Stub:
    """An application that answers everything and keeps the scopes it has seen."""

    def __init__(self):
        self.seen = []

    async def __call__(self, scope, receive, send):
        self.seen.append(scope)
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            return
        more = True
        while more:
            more = (await receive()).get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"page"})


def ask(
    guard,
    path="/",
    *,
    host=HOST,
    method="GET",
    body=(b"",),
    kind="http",
    headers=(),
    at="127.0.0.1",
):
    """One request: the status (None if a websocket is closed unaccepted), headers and body."""
    named = {"host": host, **dict(headers)}
    scope = {
        "type": kind,
        "path": path,
        "method": method,
        "scheme": "http",
        "server": (at, 2718),
        "headers": [(k.encode(), v.encode()) for k, v in named.items() if v is not None],
    }
    if kind == "websocket":
        incoming = [{"type": "websocket.connect"}]
        del scope["method"]
    else:
        incoming = [{"type": "http.request", "body": part, "more_body": True} for part in body]
        incoming[-1]["more_body"] = False
    sent = []

    async def receive():
        return incoming.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    first = sent[0]
    if kind == "websocket":
        return (101 if first["type"] == "websocket.accept" else None), {}, len(sent)
    told = {key.decode(): value.decode() for key, value in first["headers"]}
    return first["status"], told, b"".join(one.get("body", b"") for one in sent).decode()


def cookie_of(headers):
    return {"cookie": headers["set-cookie"].partition(";")[0]}


@pytest.fixture
def stub():
    return Stub()


@pytest.fixture(autouse=True)
def no_delay(monkeypatch):
    monkeypatch.setattr(request_guard, "WRONG_TOKEN_S", 0)


@pytest.mark.parametrize("host", [HOST, "localhost:2718", "[::1]:2718", "LOCALHOST:2718"])
def test_loopback_names_with_the_port_are_answered(stub, host):
    assert ask(RequestGuard(stub), host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:2718",
        "127.0.0.1",
        "127.0.0.1:2719",
        "127.0.0.1:2718@evil.example",
        "localhost.evil.example:2718",
        "",
        None,
    ],
)
def test_any_other_host_is_refused_before_the_notebook_learns_of_it(stub, host):
    """DNS rebinding: the name of another site is made to point here."""
    for kind, refused in (("http", 421), ("websocket", None)):
        assert ask(RequestGuard(stub), host=host, kind=kind)[0] == refused
    assert stub.seen == []


@pytest.mark.parametrize(
    ("at", "host"),
    [
        ("192.0.2.5", "192.0.2.5:2718"),
        ("2001:db8::5", "[2001:db8::5]:2718"),
        ("::ffff:192.0.2.5", "192.0.2.5:2718"),
    ],
)
def test_the_address_that_a_request_came_in_on_is_answered(stub, at, host):
    assert ask(RequestGuard(stub), host=host, at=at)[0] == 200
    assert ask(RequestGuard(stub), host="192.0.2.6:2718", at=at)[0] == 421


def test_two_host_headers_are_refused(stub):
    guard = RequestGuard(stub)
    assert ask(guard, headers={"Host": "evil.example"})[0] == 421


def test_a_name_that_was_allowed_is_answered_as_it_was_given(stub):
    guard = RequestGuard(stub, names=["tutor.example", "localhost:9000"])
    assert ask(guard, host="tutor.example")[0] == 200
    assert ask(guard, host="localhost:9000")[0] == 200
    assert ask(guard, host="tutor.example:9000")[0] == 421


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://localhost:2718",
        "http://127.0.0.1:9999",
        "http://[",
        "",
    ],
)
def test_another_site_s_page_gets_no_answer_and_no_websocket(stub, origin):
    guard = RequestGuard(stub)
    for kind, method, refused in (
        ("websocket", "GET", None),
        ("http", "GET", 403),
        ("http", "POST", 403),
    ):
        status, _, rest = ask(guard, "/ws", kind=kind, method=method, headers={"origin": origin})
        assert status == refused
        assert kind == "http" or rest == 1, "nothing but the closing is sent"
    assert stub.seen == []


def test_the_page_s_own_requests_and_websockets_are_passed_on(stub):
    own = {"origin": f"http://{HOST}"}
    guard = RequestGuard(stub)
    assert ask(guard, "/api", method="POST", headers=own)[0] == 200
    assert ask(guard, "/ws", kind="websocket", headers=own)[0] == 101


def test_another_site_may_link_here_but_neither_frame_nor_load_it(stub):
    guard = RequestGuard(stub)
    foreign = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    status, headers, _ = ask(guard, headers=foreign | {"sec-fetch-dest": "document"})
    assert (status, headers["x-frame-options"]) == (200, "DENY")
    assert ask(guard, headers=foreign | {"sec-fetch-dest": "iframe"})[0] == 403
    image = {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    assert ask(guard, headers=image)[0] == 403


def test_a_visitor_is_known_by_a_cookie_that_scripts_and_other_sites_do_not_get(stub):
    guard = RequestGuard(stub)
    _, headers, _ = ask(guard)
    assert "HttpOnly" in headers["set-cookie"]
    assert "SameSite=Strict" in headers["set-cookie"]
    _, again, _ = ask(guard, headers=cookie_of(headers))
    assert "set-cookie" not in again
    ask(guard, "/ws", kind="websocket", headers=cookie_of(headers))
    first, second, socket = (one["meta"]["visitor"] for one in stub.seen)
    assert first == second == socket
    ask(guard)
    assert stub.seen[-1]["meta"]["visitor"] != first


def test_a_cookie_that_this_server_did_not_sign_is_nobody_s(stub):
    _, headers, _ = ask(RequestGuard(stub))
    guard = RequestGuard(stub, token=TOKEN)
    for cookie in (
        cookie_of(headers)["cookie"],
        "medcot-2718=abc",
        "medcot-2718=abc.",
        "medcot-2718=.",
        "medcot-2718=é.é",
        ";=;",
    ):
        assert ask(guard, "/ws", kind="websocket", headers={"cookie": cookie})[0] is None
    assert len(stub.seen) == 1


def test_without_the_token_nothing_but_the_login_page_is_sent(stub):
    guard = RequestGuard(stub, token=TOKEN)
    status, headers, _ = ask(guard)
    assert (status, headers["location"]) == (303, "/login")
    assert ask(guard, "/assets/index.js")[0] == 401
    assert ask(guard, "/api/kernel/instantiate", method="POST")[0] == 401
    assert ask(guard, "/ws", kind="websocket")[0] is None
    status, _, page = ask(guard, "/login")
    assert status == 200
    assert TOKEN not in page
    assert stub.seen == []


def test_the_token_is_typed_and_is_no_part_of_an_address(stub):
    guard = RequestGuard(stub, token=TOKEN)
    assert ask(guard, f"/?token={TOKEN}")[0] == 401
    for wrong in ("", "wrong", TOKEN[:-1], TOKEN + "x", "é"):
        body = urlencode({"token": wrong}).encode()
        assert ask(guard, "/login", method="POST", body=[body])[0] == 401
    body = urlencode({"token": TOKEN}).encode()
    status, headers, _ = ask(guard, "/login", method="POST", body=[body])
    assert (status, headers["location"]) == (303, "/")
    assert TOKEN not in headers["set-cookie"]
    assert ask(guard, headers=cookie_of(headers))[0] == 200
    assert ask(guard, "/ws", kind="websocket", headers=cookie_of(headers))[0] == 101


def test_a_login_from_another_site_is_refused(stub):
    guard = RequestGuard(stub, token=TOKEN)
    body = urlencode({"token": TOKEN}).encode()
    foreign = {"origin": "http://evil.example"}
    assert ask(guard, "/login", method="POST", body=[body], headers=foreign)[0] == 403


def test_a_request_that_is_too_large_is_refused_declared_or_not(stub):
    guard, large = RequestGuard(stub), b"x" * (LARGEST_BODY // 2 + 1)
    for declared in (LARGEST_BODY + 1, "9" * 400, "-1", "1e3"):
        headers = {"content-length": str(declared)}
        assert ask(guard, "/api", method="POST", headers=headers)[0] == 413
    assert stub.seen == []
    assert ask(guard, "/api", method="POST", body=[large, large])[0] == 413
    assert ask(guard, "/api", method="POST", body=[large])[0] == 200
    guarded = RequestGuard(stub, token=TOKEN)
    assert ask(guarded, "/login", method="POST", body=[large, large])[0] == 413


def test_the_notebook_is_told_the_options_of_the_start(stub):
    ask(RequestGuard(stub, options={"rank": "8"}))
    assert stub.seen[0]["meta"]["options"] == {"rank": "8"}
