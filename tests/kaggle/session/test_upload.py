"""The upload of a finished run: the real hub client against a loopback hub, in its own process."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_" + "UploadTokenOfTheTest"


class Hub(ThreadingHTTPServer):
    """Takes a new repository and one commit from whoever has the token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(raw))
            return self._send(200, {"url": f"{self.server.url}/ann/tuned"})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(raw)["files"]]
            modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return self._send(200, {"files": modes})
        for line in raw.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.server.files[value["path"]] = base64.b64decode(value["content"])
        address = f"{self.server.url}/ann/tuned/commit/{'0' * 40}"
        return self._send(200, {"commitUrl": address, "commitOid": "0" * 40})

    def _send(self, status: int, body: Any) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        serve = {"poll_interval": 0.02}
        threading.Thread(target=server.serve_forever, kwargs=serve, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "adapter_model.safetensors").write_bytes(b"\0weights")
    (tmp_path / "run" / "report.md").write_bytes(b"# Report\n")
    (tmp_path / "run" / "config.json").write_bytes(b"{}")
    return tmp_path / "run"


def upload(hub: Hub, run: Path, token: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token}
    command = [sys.executable, "-m", "medcot.kaggle.session.upload", str(run), "ann/tuned"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


def test_the_adapter_and_its_report_go_into_a_private_repository(hub: Hub, run: Path) -> None:
    answer = upload(hub, run, TOKEN)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    [made] = hub.created
    assert made.get("private") is True or made.get("visibility") == "private"
    assert hub.files == {"adapter_model.safetensors": b"\0weights", "report.md": b"# Report\n"}
    assert "uploaded to" in answer.stdout


def test_a_refused_upload_is_one_line_without_the_token(hub: Hub, run: Path) -> None:
    answer = upload(hub, run, "hf_" + "aWrongTokenOfTheTest")
    assert answer.returncode == 1
    [line] = answer.stdout.strip().splitlines()
    assert line.startswith("upload to ann/tuned failed: ")
    assert "aWrongToken" not in answer.stdout + answer.stderr
    assert not hub.files
