"""The command that serves the notebook: what it refuses. A browser tests what it serves."""

import ipaddress
import signal
import threading
import time

import pytest
import uvicorn
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from medcot.credentials import read_token_file
from medcot.errors import InputError
from medcot.network import open_socket
from medcot.notebook import server


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("a token of more than sixteen letters\n")
    return path


def refused(capsys, *arguments):
    """The only line that the command prints before it exits with 2."""
    with pytest.raises(SystemExit) as stopped:
        server.main(["--headless", "--port", "0", *arguments])
    assert stopped.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    line, *more = told.err.splitlines()
    assert more == []
    return line


@pytest.mark.parametrize("host", ["0.0.0.0", "0"])
def test_a_network_without_a_token_is_refused(capsys, host):
    assert "without a token" in refused(capsys, "--host", host)


def test_loopback_needs_no_token_and_a_network_takes_one():
    for host, token in (("127.0.0.1", None), ("localhost", None), ("0.0.0.0", "token")):
        with open_socket(host, 0, served="the notebook", has_token=token is not None) as bound:
            assert ipaddress.ip_address(bound.getsockname()[0]).is_loopback == (token is None)


def test_a_port_that_is_taken_is_one_line(capsys):
    with open_socket("127.0.0.1", 0, served="the notebook", has_token=False) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "choose another" in refused(capsys, "--port", port)


@pytest.mark.parametrize("content", [b"short", b"", b"\xff" * 20, b"two lines of a\ntoken token"])
def test_a_token_that_can_be_guessed_or_typed_by_nobody_is_refused(capsys, tmp_path, content):
    path = tmp_path / "token"
    path.write_bytes(content)
    line = refused(capsys, "--token-file", str(path))
    assert str(path) in line
    assert content == b"" or content.decode("latin-1") not in line


def test_a_token_file_that_is_not_there_is_one_line(capsys, tmp_path):
    assert "No such file" in refused(capsys, "--token-file", str(tmp_path / "none"))


def test_the_token_is_the_file_s_line_without_its_end(token_file):
    assert read_token_file(str(token_file)) == "a token of more than sixteen letters"


def test_options_of_a_run_are_read_like_the_command_line_s():
    words = ["--rank", "8", "--mcq=a", "--mcq", "b", "--resume", "--dataset", "x y"]
    assert server.parse_options(words) == {
        "rank": "8", "mcq": ["a", "b"], "resume": "", "dataset": "x y",
    }  # fmt: skip
    with pytest.raises(InputError, match="belongs to no option"):
        server.parse_options(["--rank", "8", "9"])


def test_a_wrong_option_is_refused_before_anything_listens(capsys):
    assert "unknown option" in refused(capsys, "--", "--rnk", "8")
    assert "rank" in refused(capsys, "--", "--preset", "demo", "--rank", "0")


async def echo(scope, receive, send):
    """An application that accepts a websocket and tells how many bytes each message has."""
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": str(len(message["text"]))})


@pytest.fixture
def address(monkeypatch):
    """The port of a server of :func:`echo`, run as the notebook's is."""
    started = []
    real = uvicorn.Server

    def kept(config):
        started.append(real(config))
        return started[0]

    monkeypatch.setattr(uvicorn, "Server", kept)
    with open_socket("127.0.0.1", 0, served="the notebook", has_token=False) as bound:
        thread = threading.Thread(target=server.serve, args=(echo, bound))
        thread.start()
        while not (started and started[0].started):
            time.sleep(0.01)
        yield f"ws://127.0.0.1:{bound.getsockname()[1]}"
        started[0].should_exit = True
        thread.join(10)


def test_a_message_over_the_limit_closes_the_connection_and_one_below_it_does_not(address):
    with connect(address) as socket:
        socket.send("x" * (server.LARGEST_MESSAGE - 1))
        assert socket.recv() == str(server.LARGEST_MESSAGE - 1)
    with connect(address) as socket:
        socket.send("x" * (server.LARGEST_MESSAGE + 1))
        with pytest.raises(ConnectionClosedError) as closed:
            socket.recv()
    assert closed.value.rcvd.code == 1009  # message too big


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_ended_cancels_its_training_and_waits_for_it(monkeypatch, capsys, number):
    """uvicorn raises the signal again when it has shut down."""
    waited = []

    class Job:
        def cancel(self):
            waited.append("cancelled")

        def wait(self, seconds):
            waited.append(seconds)

    class Server:
        def __init__(self, _config):
            pass

        def run(self, sockets):
            signal.raise_signal(number)

    monkeypatch.setattr(uvicorn, "Server", Server)
    monkeypatch.setattr(server.RUNNER, "_job", Job())
    monkeypatch.setattr(server.RUNNER, "is_training", lambda: True)
    before = signal.getsignal(signal.SIGTERM)
    server.serve(echo, None)
    assert waited == ["cancelled", server.LAST_STEP_S]
    assert signal.getsignal(signal.SIGTERM) == before
    assert "finished work is kept" in capsys.readouterr().err
