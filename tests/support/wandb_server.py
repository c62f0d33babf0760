"""A W&B server on loopback that refuses, hangs or drops: what the real client must survive."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal["refuse", "hang", "hang later", "drop later"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        fault = self.server.fault
        operation = json.loads(body).get("operationName") if self.path == "/graphql" else "stream"
        self.server.operations.append(operation)
        if fault == "refuse":
            self._answer(401, {"errors": [{"message": "user is not logged in"}]})
            return
        if fault == "hang" or (fault == "hang later" and operation not in OPENING):
            self.server.closed.wait(60)
        elif fault == "drop later" and operation not in OPENING:
            pass
        else:
            self._answer(200, {"data": answer(operation, json.loads(body)["variables"])})
            return
        self.close_connection = True

    def _answer(self, code: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    fault: Fault
    operations: list[str]
    closed: threading.Event


OPENING = ("RunResumeStatus", "UpsertBucket")
"""What the client asks before a run is open."""


def answer(operation: str, variables: dict[str, Any]) -> dict[str, Any]:
    """Answer what opens a new run of the user ``me``."""
    project = {
        "id": "UDox",
        "name": variables.get("project"),
        "entity": {"id": "RTox", "name": "me"},
    }
    if operation == "RunResumeStatus":
        return {"model": project | {"bucket": None}}
    name = variables["name"]
    bucket = {"id": "QjE=", "name": name, "displayName": name, "config": variables.get("config")}
    absent: dict[str, Any] = {"description": None, "sweepName": None, "historyLineCount": 0}
    return {"upsertBucket": {"bucket": bucket | absent | {"project": project}, "inserted": True}}


@contextmanager
def faulty_wandb(fault: Fault) -> Iterator[tuple[str, list[str]]]:
    """Serve on a free port; give the address and the operations asked for so far."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.fault, server.operations, server.closed = fault, [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.operations
    finally:
        server.closed.set()
        server.shutdown()
        server.server_close()


def forget_client() -> None:
    """Make the client read its variables anew at its next run: it keeps those of its first one."""
    import wandb

    wandb.teardown()
    # A run that could not be finished leaves a thread that fails with its service.
    for thread in threading.enumerate():
        if thread.name == "NetStatThr":
            thread.join(10)
