"""A stand-in of Kaggle on loopback, for Kaggle's own client; it runs what is pushed to it.

Reached as a proxy: the client is told ``KAGGLE_API_ENVIRONMENT=LOCALHOST`` and ``http_proxy``, and
nothing in it is patched. Faults are asked for by name: ``server.fail("SaveKernel", status=503)``.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.kaggle_session import Session

USER, KEY, TOKEN = "ann", "0123456789abcdef0123456789abcdef", "KGAT_aBcDeFgHiJkLmNoPqRsTuVwX"


@dataclass
class Fault:
    """What to do with the next ``times`` calls of ``name`` instead of, or after, answering."""

    name: str
    times: int = 1
    status: int = 200
    body: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Bytes of a file or (with ``carry_out``) of an answer, or events of a log, after which the
    connection ends."""
    carry_out: bool = False
    """Do what was asked and lose the answer."""
    silent_s: float = 0.0
    """Say nothing for so long before that."""
    name_contains: str = ""


class KaggleServer:
    """One account, its kernels, data sets, quota and secrets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernels: dict[str, list[Session]] = {}
        self.titles: dict[str, str] = {}
        self.datasets: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.secrets: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.received: list[bytes] = []
        self.file_headers: list[dict[str, str]] = []
        self.hours_used, self.hours_reserved = 3.0, 0.0
        self.names_quota = True
        self.page_size = 100
        self.most_gpu_sessions = 2
        self.start: Callable[[Session], None] = Session.run
        """What happens to a pushed script: by default it is run in a process of its own."""
        self.session_options: dict[str, Any] = {}
        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._httpd.daemon_threads = True
        self._thread = threading.Thread(
            target=self._httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._httpd.server_address[1]}"

    def __enter__(self) -> KaggleServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for sessions in self.kernels.values():
            for session in sessions:
                session.kill("CANCEL_ACKNOWLEDGED")
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join()

    def environment(self) -> dict[str, str]:
        """What a client needs to reach this server as ``USER``."""
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "http_proxy": self.url,
            "no_proxy": "",
            "NO_PROXY": "",
            "KAGGLE_USERNAME": USER,
            "KAGGLE_KEY": KEY,
        }

    def fail(self, name: str, **how: Any) -> Fault:
        fault = Fault(name, **how)
        self.faults.append(fault)
        return fault

    def calls_of(self, name: str) -> list[dict[str, Any]]:
        return [body for called, body in self.calls if called == name]

    def sessions(self) -> list[Session]:
        return [session for sessions in self.kernels.values() for session in sessions]

    def take_fault(self, name: str, what: str = "") -> Fault | None:
        for fault in self.faults:
            if fault.name == name and fault.times > 0 and fault.name_contains in what:
                fault.times -= 1
                return fault
        return None

    def answer(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        method = getattr(self, "_" + re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(), None)
        return method(body) if method else (404, {"code": 404, "message": f"no {name} here"})

    def find(self, body: dict[str, Any]) -> Session | None:
        """The version that ``versionLabel`` names (``v3``, never a bare number), or the last."""
        sessions = self.kernels.get(f"{body.get('userName')}/{body.get('kernelSlug')}")
        if not sessions:
            return None
        label = body.get("versionLabel")
        if label is None:
            return sessions[-1]
        return next((s for s in sessions if f"v{s.number}" == label), None)

    # One method per remote call, named as Kaggle names it.

    def _introspect_token(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        known = body.get("token") == TOKEN
        return 200, {"active": True, "username": USER} if known else {}

    def _get_accelerator_quota_statistics(self, _: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if not self.names_quota:
            return 200, {"gpuQuota": {}}
        return 200, {
            "quotaRefreshTime": "2026-11-28T00:00:00Z",
            "gpuQuota": {
                "timeUsed": f"{round(self.hours_used * 3600)}s",
                "timeReserved": f"{round(self.hours_reserved * 3600)}s",
                "totalTimeAllowed": "108000s",
            },
        }

    def _save_kernel(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        ref, title = body["slug"], body["newTitle"]
        owner, slug = ref.split("/")
        if owner != USER:
            return 403, {"code": 403, "message": "Permission 'kernels.create' was denied"}
        if len(body["text"]) > 1_000_000:
            return 200, {"error": "Source exceeds the maximum size"}
        if refused := self._refuse_machine(body):
            return 200, {"error": refused}
        if self.titles.setdefault(title, ref) != ref:
            return 200, {"error": f'The requested title "{title}" is already in use by a notebook.'}
        sessions = self.kernels.setdefault(ref, [])
        mounts, invalid = self._mounts(body)
        session = Session(
            ref=ref,
            number=len(sessions) + 1,
            body=body,
            folder=self.folder / slug / f"v{len(sessions) + 1}",
            mounts=mounts,
            url_base=self.url,
            **self.session_options,
        )
        sessions.append(session)
        self.start(session)
        answer = {"ref": f"/code/{ref}", "url": f"https://www.kaggle.com/code/{ref}"}
        return 200, answer | {"versionNumber": session.number, "kernelId": 7} | invalid

    def _refuse_machine(self, body: dict[str, Any]) -> str:
        """What Kaggle says of a machine that is not offered (kaggle-cli issues 1151, 1198), or of
        a GPU session more than an account may have (issue 185)."""
        shape = body.get("machineShape", "")
        if shape not in ("", "NvidiaTeslaT4", "TpuV5E8"):
            return f"Invalid machine shape: {shape}"
        on_gpu = [one for one in self.sessions() if one.running and one.body.get("enableGpu")]
        if body.get("enableGpu") and len(on_gpu) >= self.most_gpu_sessions:
            return f"Maximum batch GPU session count of {self.most_gpu_sessions} reached."
        return ""

    def _mounts(self, body: dict[str, Any]) -> tuple[dict[str, Path], dict[str, list[str]]]:
        mounts: dict[str, Path] = {}
        invalid: dict[str, list[str]] = {}
        for source in body.get("datasetDataSources", []):
            if source in self.datasets:
                mounts[source.split("/")[1]] = self.datasets[source]["folder"]
            else:
                invalid.setdefault("invalidDatasetSources", []).append(source)
        for source in body.get("kernelDataSources", []):
            ended = [s for s in self.kernels.get(source, []) if not s.running]
            if ended:
                mounts[source.split("/")[1]] = ended[-1].output
            else:
                invalid.setdefault("invalidKernelSources", []).append(source)
        return mounts, invalid

    def _get_kernel(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        session = self.find(body)
        if session is None:
            # A version in the slug is another kernel's name; a bare number is no version's label
            # (kaggle-cli issue 1200 and pull request 1201).
            if f"{body.get('userName')}/{body.get('kernelSlug')}" in self.kernels:
                return 404, {"code": 404, "message": "Not found"}
            return 403, {"code": 403, "message": "Permission 'kernels.get' was denied"}
        return 200, {
            "metadata": {"ref": session.ref, "currentVersionNumber": session.number},
            "blob": {"source": session.body["text"], "language": "python"},
        }

    def _get_kernel_session_status(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        session = self.find(body)
        if session is None:
            return 404, {"code": 404, "message": "Not found"}
        # Default values are left out of an answer, and QUEUED is one.
        answer = {} if session.status == "QUEUED" else {"status": session.status}
        return 200, answer | ({"failureMessage": session.message} if session.message else {})

    def _list_kernel_session_output(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        session = self.find(body)
        if session is None:
            return 404, {"code": 404, "message": "Not found"}
        names = session.names()
        size = min(self.page_size, body.get("pageSize", 20))
        first = int(body.get("pageToken") or 0)
        base = f"http://localhost/files/{session.ref}/{session.number}"
        files = [
            {"fileName": name, "url": f"{base}/{quote(name, safe='')}"}
            for name in names[first : first + size]
        ]
        more = {"nextPageToken": str(first + size)} if first + size < len(names) else {}
        return 200, {"files": files, "log": json.dumps(session.log)} | more

    def _get_dataset(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        dataset = self.datasets.get(f"{body.get('ownerSlug')}/{body.get('datasetSlug')}")
        if dataset is None:
            return 403, {"code": 403, "message": "Permission 'datasets.get' was denied"}
        return 200, {"isPrivate": True} if dataset["private"] else {}

    def _get_dataset_status(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        known = f"{body.get('ownerSlug')}/{body.get('datasetSlug')}" in self.datasets
        return (200, {"status": "READY"}) if known else (404, {"code": 404, "message": "none"})

    def _start_blob_upload(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        token = f"{len(self.blobs)}-{body['name']}"
        self.blobs[token] = b""
        return 200, {"token": token, "createUrl": f"http://localhost/upload/{token}"}

    def _create_dataset(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        ref = f"{body['ownerSlug']}/{body['slug']}"
        self.add_dataset(ref, self._uploaded(body["files"]), private=body.get("isPrivate", False))
        return 200, {"ref": ref, "status": "ok"}

    def _create_dataset_version(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
        files = self._uploaded(body["body"]["files"])
        self.add_dataset(ref, files, private=self.datasets[ref]["private"])
        return 200, {"ref": ref, "status": "ok"}

    def _uploaded(self, files: list[dict[str, str]]) -> dict[str, bytes]:
        return {file["token"].split("-", 1)[1]: self.blobs[file["token"]] for file in files}

    def add_dataset(self, ref: str, files: dict[str, bytes], *, private: bool = True) -> None:
        folder = self.folder / "datasets" / ref
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        self.datasets[ref] = {"private": private, "folder": folder}


def _handler(server: KaggleServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing."""

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            if path == "/requests/GetUserSecretByLabelRequest":
                return self._secret(json.loads(raw))
            server.received.append(raw)
            name, body = path.rpartition("/")[2], json.loads(raw or b"{}")
            server.calls.append((name, body))
            if not self._signed_in(name):
                return self._send(401, {"code": 401, "message": "Unauthenticated"})
            fault = server.take_fault(name)
            if fault and fault.silent_s and not fault.carry_out:
                time.sleep(fault.silent_s)
                return self._hang_up()
            if fault and not fault.carry_out:
                if fault.cut_after is not None:
                    return self._hang_up()
                return self._send(fault.status, fault.body or _error(fault), fault.headers)
            status, answer = server.answer(name, body)
            if fault and fault.cut_after is not None:
                return self._send(status, answer, cut_after=fault.cut_after)
            if fault and fault.status == 200 and fault.body is None:
                time.sleep(fault.silent_s)
                return self._hang_up()
            if fault:
                return self._send(fault.status, answer | (fault.body or _error(fault)))
            return self._send(status, answer)

        def do_PUT(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.received.append(raw)
            server.blobs[urlsplit(self.path).path.rpartition("/")[2]] = raw
            self._send(200, {})

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            parts = address.path.strip("/").split("/")
            if parts[0] == "files":
                return self._file(parts)
            server.calls.append(("logs", parse_qs(address.query)))
            if not self._signed_in("logs"):
                return self._send(401, {"code": 401, "message": "Unauthenticated"})
            label = parse_qs(address.query).get("versionLabel", [None])[0]
            body = {"userName": parts[-2], "kernelSlug": parts[-1], "versionLabel": label}
            session = server.find(body)
            if session is None:
                return self._send(404, {"code": 404, "message": "Not found"})
            return self._stream(session)

        def _signed_in(self, name: str) -> bool:
            basic = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
            given = self.headers.get("Authorization", "")
            return name == "IntrospectToken" or given in (f"Basic {basic}", f"Bearer {TOKEN}")

        def _secret(self, body: dict[str, Any]) -> None:
            fault = server.take_fault("secret")
            if fault:
                return self._send(fault.status, {})
            if self.headers.get("X-Kaggle-Authorization") != "Bearer session-token":
                return self._send(401, {})
            value = server.secrets.get(body["Label"])
            if value is None:
                return self._send(200, {"wasSuccessful": False, "errors": ["no such secret"]})
            return self._send(200, {"wasSuccessful": True, "result": {"secret": value}})

        def _stream(self, session: Session) -> None:
            fault = server.take_fault("logs")
            if fault and fault.status != 200:
                return self._send(fault.status, _error(fault), fault.headers)
            if not session.running and not fault:
                return self._send(200, session.log)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for sent, event in enumerate(session.follow_log()):
                if fault and fault.cut_after is not None and sent >= fault.cut_after:
                    return self._hang_up()
                self._chunk(f"data: {json.dumps(event)}\n\n".encode())
            self._chunk(b"data: END_OF_LOG\n\n")
            self._chunk(b"")
            return None

        def _chunk(self, content: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
            self.wfile.flush()

        def _file(self, parts: list[str]) -> None:
            ref, number, name = f"{parts[1]}/{parts[2]}", int(parts[3]), unquote(parts[4])
            content = server.kernels[ref][number - 1].read(name)
            server.file_headers.append(dict(self.headers))
            fault = server.take_fault("download", name)
            if fault and fault.status != 200:
                return self._send(fault.status, {}, fault.headers)
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            first = int(asked[1]) if asked else 0
            server.calls.append(("download", {"name": name, "from": first}))
            if asked and first >= len(content):
                return self._send(416, {})
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            if fault and fault.cut_after is not None:
                self.wfile.write(content[first : first + fault.cut_after])
                return self._hang_up()
            self.wfile.write(content[first:])
            return None

        def _hang_up(self) -> None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()

        def _send(
            self,
            status: int,
            body: Any,
            headers: dict[str, str] | None = None,
            cut_after: int | None = None,
        ) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw[:cut_after])
            if cut_after is not None:
                self._hang_up()

    return Handler


def _error(fault: Fault) -> dict[str, Any]:
    return {"code": fault.status, "message": "as the test asked"} if fault.status >= 400 else {}
