"""Hostile output of a session: one clear line each, nothing outside, nothing moved before all fits.

The server and the account are the smallest that ``fetch`` takes.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medcot.errors import InputError, RunFailed
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.api_types import OutputFile
from medcot.kaggle.client.fetch import fetch
from medcot.kaggle.client.push_state import PushRecord
from medcot.kaggle.client.retry import RetryPolicy
from medcot.runs.directory import RunDirectory
from medcot.runs.lock import RunLock
from tests.support.kaggle_scripts import CONFIG

PUSH = PushRecord("ann/demo", "a" * 64, 1, "2026-01-01T00:00:00+00:00", 1)
FILES = {"run/report.json": b"{}", "run/adapter/weights": b"w" * 99, "run/config.json": b"{}"}
Files = dict[str, bytes]


class Output:
    """An output of a session, and the account that lists it. ``files`` are what is served."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: Files = dict(FILES)
        self.manifest = {
            "bundle": PUSH.checksum, "run": "key", "session": 1, "outcome": "done",
            "exit_code": 0, "seconds": 1.0, "notes": [],
            "files": {
                name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                for name, content in FILES.items()
            },
        }  # fmt: skip
        self.manifest_text: str | bytes | None = None
        self.repeated: list[str] = []
        self.urls: dict[str, str] = {}
        self.log = "step 1\n"
        self.policy = RetryPolicy(limit_s=0.2, first_delay_s=0.05, sleep=lambda _: None)

    def served(self) -> Files:
        text = self.manifest_text
        text = json.dumps(self.manifest) if text is None else text
        return self.files | {"manifest.json": text.encode() if isinstance(text, str) else text}

    def outputs(self, _ref: str, _version: int) -> tuple[list[OutputFile], str]:
        names = [*self.served(), *self.repeated]
        return [
            OutputFile(name, self.urls.get(name, f"{self.address}/{at}"))
            for at, name in enumerate(names)
        ], self.log


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/loop":
                self.send_response(302)
                self.send_header("Location", "/loop")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path.startswith("/status/"):
                self.send_response(int(self.path.rpartition("/")[2]))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            files = list(running.output.served().values())  # type: ignore[attr-defined]
            content = files[int(self.path[1:]) % len(files)]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(
        target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def output(server: ThreadingHTTPServer) -> Output:
    made = Output(f"http://127.0.0.1:{server.server_port}")
    server.output = made  # type: ignore[attr-defined]
    return made


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "runs" / "demo")
    made.create(CONFIG)
    return made


def holding(*names: str, content: bytes = b"evil") -> Callable[[Output, Path], None]:
    """The output also holds files of these names, which the manifest does not know."""

    def change(output: Output, _home: Path) -> None:
        output.files |= dict.fromkeys(names, content)

    return change


def manifest_text(text: str | bytes) -> Callable[[Output, Path], None]:
    def change(output: Output, _home: Path) -> None:
        output.manifest_text = text

    return change


def manifest(**changes: Any) -> Callable[[Output, Path], None]:
    def change(output: Output, _home: Path) -> None:
        output.manifest |= changes

    return change


def entry(**changes: Any) -> Callable[[Output, Path], None]:
    """The manifest says something else of one file."""

    def change(output: Output, _home: Path) -> None:
        output.manifest["files"]["run/adapter/weights"] |= changes  # type: ignore[index]

    return change


def address(url: str) -> Callable[[Output, Path], None]:
    def change(output: Output, _home: Path) -> None:
        output.urls["run/report.json"] = url.replace("SERVER", output.address)

    return change


def here(make: Callable[[Path], None]) -> Callable[[Output, Path], None]:
    """Something is in the way in the run directory."""

    def change(_output: Output, home: Path) -> None:
        make(home)

    return change


def repeated(output: Output, _home: Path) -> None:
    output.repeated.append("run/report.json")


def unlisted(output: Output, _home: Path) -> None:
    del output.files["run/report.json"]


def link(name: str) -> Callable[[Output, Path], None]:
    def make(home: Path) -> None:
        (home.parent.parent / "elsewhere").mkdir()
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).symlink_to(home.parent.parent / "elsewhere")

    return here(make)


LEADS_OUT = "leads out of the run directory"
NO_FILE_SYSTEM = "not every file system can hold"
DAMAGED = r"manifest\.json is damaged"
HOSTILE: dict[str, tuple[Callable[[Output, Path], None], str]] = {
    "parent": (holding("../evil"), LEADS_OUT),
    "parent inside": (holding("run/../../evil"), LEADS_OUT),
    "deep parent": (holding("run/a/../../../../evil"), LEADS_OUT),
    "two dots": (holding(".."), LEADS_OUT),
    "absolute": (holding("/etc/passwd"), LEADS_OUT),
    "two slashes": (holding("//etc/passwd"), LEADS_OUT),
    "empty": (holding(""), LEADS_OUT),
    "dot": (holding("run/./x"), LEADS_OUT),
    "slash at the end": (holding("run/x/"), LEADS_OUT),
    "backslash": (holding("run\\..\\evil"), LEADS_OUT),
    "drive": (holding("C:evil"), LEADS_OUT),
    "stream": (holding("run/report.json:evil"), LEADS_OUT),
    "NUL": (holding("run/a\0b"), LEADS_OUT),
    "line feed": (holding("run/a\nmedcot: all is well"), LEADS_OUT),
    "escape": (holding("run/\x1b[2Jx"), LEADS_OUT),
    "C1 control": (holding("run/\x9b2Jx"), LEADS_OUT),
    "delete": (holding("run/\x7f"), LEADS_OUT),
    "lone surrogate": (holding("run/\ud800"), NO_FILE_SYSTEM),
    "device": (holding("run/NUL"), NO_FILE_SYSTEM),
    "device with suffix": (holding("run/com1.txt"), NO_FILE_SYSTEM),
    "device folder": (holding("run/aux/x"), NO_FILE_SYSTEM),
    "space at the end": (holding("run/x "), NO_FILE_SYSTEM),
    "full stop at the end": (holding("run/x./y"), NO_FILE_SYSTEM),
    "three dots": (holding("run/..."), NO_FILE_SYSTEM),
    "256 characters": (holding("run/" + "x" * 256), "too long"),
    "100 wide characters": (holding("run/" + "好" * 100), "too long"),
    "deep": (holding("run/" + "x/" * 3000 + "x"), "too long"),
    "file and folder": (holding("run/a", "run/a/b"), "as a file and as a folder"),
    "folder and file": (holding("run/a/b/c", "run/a"), "as a file and as a folder"),
    "file and folder by case": (holding("run/A", "run/a/b"), "as a file and as a folder"),
    "folder of a known file": (holding("run/report.json/x"), "as a file and as a folder"),
    "twice": (repeated, "two files named 'run/report.json'"),
    "case": (holding("run/Report.json"), "which are one file"),
    "case of a folder": (holding("run/Adapter/weights"), "which are one file"),
    "composed": (holding("run/\u00e9", "run/e\u0301"), "which are one file"),
    "one place": (holding("run/error.json", "error.json"), "which are one file"),
    "part of another": (holding("run/report.json.part"), "which are one file"),
    "no text": (manifest_text(b"\xff\xfe"), DAMAGED),
    "empty manifest": (manifest_text(""), DAMAGED),
    "list": (manifest_text("[]"), DAMAGED),
    "null": (manifest_text("null"), DAMAGED),
    "deep manifest": (manifest_text("[" * 200_000), DAMAGED),
    "deep object": (manifest_text('{"a":' * 200_000), DAMAGED),
    "no files": (manifest(files=3), DAMAGED),
    "files a list": (manifest(files=[1]), DAMAGED),
    "unknown field": (manifest(evil=1), DAMAGED),
    "unknown outcome": (manifest(outcome="\x1b[2J"), DAMAGED),
    "exit code": (manifest(exit_code="0"), DAMAGED),
    "notes": (manifest(notes=7), DAMAGED),
    "size Infinity": (entry(size=float("inf")), DAMAGED),
    "size NaN": (entry(size=float("nan")), DAMAGED),
    "size negative": (entry(size=-1), DAMAGED),
    "size a fraction": (entry(size=1.5), DAMAGED),
    "size true": (entry(size=True), DAMAGED),
    "size of text": (entry(size="9" * 5000), DAMAGED),
    "checksum null": (entry(sha256=None), DAMAGED),
    "checksum short": (entry(sha256="ab"), DAMAGED),
    "checksum wrong": (entry(sha256="0" * 64), "twice with a wrong checksum"),
    "too large": (entry(size=5), "larger than it may be"),
    "too small": (entry(size=500), "no answer to"),
    "another bundle": (manifest(bundle="b" * 64), "another bundle"),
    "not listed": (unlisted, r"does not list run/report\.json"),
    "address of a file": (address("file:///etc/passwd"), "whose address is not one"),
    "no address": (address(""), "whose address is not one"),
    "half an address": (address("http://[::1"), "whose address is not one"),
    "long host": (address("http://" + "a" * 70 + ".example/"), "whose address is not one"),
    "redirects": (address("SERVER/loop"), "whose address is not one"),
    "refused": (address("SERVER/status/403"), "could not be downloaded"),
    "no range": (address("SERVER/status/416"), "no answer to"),
    "down": (address("SERVER/status/503"), "no answer to"),
    "folder here": (here(lambda home: (home / "report.json").mkdir()), "is a folder in"),
    "file here": (here(lambda home: (home / "adapter").write_text("x")), "is a file in"),
    "incoming here": (here(lambda home: (home / "kaggle").write_text("x")), "is a file in"),
    "link here": (link("adapter"), "leads out of"),
    "link to incoming": (link("kaggle/incoming"), "leads out of"),
    "link instead of kaggle": (link("kaggle"), "leads out of"),
}


def test_the_unchanged_output_arrives(output: Output, run: RunDirectory) -> None:
    fetch(account_of(output), PUSH, run, lambda _: None)
    assert (run.path / "adapter" / "weights").read_bytes() == FILES["run/adapter/weights"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_output_is_refused_in_one_line(
    output: Output, run: RunDirectory, tmp_path: Path, name: str
) -> None:
    change, message = HOSTILE[name]
    change(output, run.path)
    before = everything(tmp_path)
    with pytest.raises(RunFailed, match=message) as caught:
        fetch(account_of(output), PUSH, run, lambda _: None)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 400 + 2 * len(str(tmp_path))
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["run/run.lock", "run/.run.lock.x1", "run/Kaggle/state.json"])
def test_what_belongs_to_this_machine_is_not_replaced(
    output: Output, run: RunDirectory, name: str
) -> None:
    holding(name)(output, run.path)
    fetch(account_of(output), PUSH, run, lambda _: None)
    assert (run.path / "kaggle" / "output" / name).read_bytes() == b"evil"
    assert not (run.path / name.removeprefix("run/")).exists()


@pytest.mark.parametrize("log", ["\ud800\n", "\x00\x1b[2J", "x" * 3_000_000])
def test_a_hostile_log_is_kept(output: Output, run: RunDirectory, log: str) -> None:
    output.log = log
    fetch(account_of(output), PUSH, run, lambda _: None)
    assert (run.path / "kaggle" / "v1.log").stat().st_size >= len(log)


def test_thousands_of_names_are_checked_at_once(output: Output, run: RunDirectory) -> None:
    holding(*(f"run/deep/{number % 50}/{number}" for number in range(5_000)), "../x")(
        output, run.path
    )
    with pytest.raises(RunFailed, match=LEADS_OUT):
        fetch(account_of(output), PUSH, run, lambda _: None)
    del output.files["../x"]
    output.files["run/Deep/1/1"] = b""
    with pytest.raises(RunFailed, match="which are one file"):
        fetch(account_of(output), PUSH, run, lambda _: None)


def test_a_full_disk_is_one_line(
    output: Output, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medcot.kaggle.client.fetch._move_to_places", full)
    with pytest.raises(RunFailed, match="No space left on device"):
        fetch(account_of(output), PUSH, run, lambda _: None)


def test_a_run_that_another_process_works_on_is_not_fetched_into(
    output: Output, run: RunDirectory, tmp_path: Path
) -> None:
    holder = RunLock(run.path)
    holder.take()
    before = everything(tmp_path)
    with pytest.raises(InputError, match=r"another process works on this run \(pid "):
        fetch(account_of(output), PUSH, run, lambda _: None)
    assert everything(tmp_path) == before
    holder.release()


def test_a_list_without_end_is_refused() -> None:
    pages = iter(range(10**9))

    def list_kernel_session_output(_request: Any) -> Any:
        page = str(next(pages))
        file = SimpleNamespace(file_name=page, url="")
        return SimpleNamespace(files=[file], log="", next_page_token=page)

    with pytest.raises(RunFailed, match="lists more than 1,000 output files"):
        account_answering(list_kernel_session_output).outputs("ann/demo", 1)


def test_an_answer_that_is_not_readable_is_one_line() -> None:
    def list_kernel_session_output(_request: Any) -> Any:
        raise TypeError("file_name must be of type str")

    with pytest.raises(RunFailed, match="answer to the output of ann/demo is not readable"):
        account_answering(list_kernel_session_output).outputs("ann/demo", 1)


def account_of(output: Output) -> Account:
    return output  # type: ignore[return-value]


def account_answering(method: Callable[[Any], Any]) -> Account:
    class Client:
        kernels = SimpleNamespace(kernels_api_client=SimpleNamespace(**{method.__name__: method}))

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    return Account(SimpleNamespace(build_kaggle_client=Client), RetryPolicy(sleep=lambda _: None))


def everything(folder: Path) -> dict[str, bytes]:
    """Every file, link and folder below ``folder``, but for empty folders of the download."""
    found = {}
    for path in folder.rglob("*"):
        if "incoming" in path.parts and not path.is_symlink():
            continue
        if path.name == "kaggle" and path.is_dir() and not path.is_symlink():
            continue
        found[str(path)] = path.read_bytes() if path.is_file() else b""
    return found
