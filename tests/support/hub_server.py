"""A stand-in of the Hugging Face hub on the loopback, for the real clients to talk to.

It answers what ``huggingface_hub`` and ``datasets`` ask of the hub to load a repository: its
information, its file tree, and its files with their metadata headers. ``Repo.trouble`` makes it
behave badly. Point the clients at it with ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE=0``; both are read
when the clients are imported, so run them in a process of their own (``run_against``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

GOOD_TOKEN = "hf_good"
"""The only token that may read gated repositories; ``hf_bad`` is refused everywhere."""

Trouble = Literal["", "gated", "private", "busy", "broken", "cut", "cut once"]


@dataclass(frozen=True)
class Repo:
    """A repository: ``files`` at one commit.

    ``trouble``: ``gated`` wants a token, ``private`` does not exist without one, ``busy`` answers
    429, ``broken`` answers 503, ``cut`` drops the connection in the middle of every data file,
    ``cut once`` only the first time.
    """

    name: str
    files: Mapping[str, bytes]
    kind: Literal["dataset", "model"] = "dataset"
    trouble: Trouble = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        digest = hashlib.sha1(self.name.encode())
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    def knows(self, revision: str) -> bool:
        return revision in ("main", self.commit, *self.tags)


class HubServer(ThreadingHTTPServer):
    """Serves ``repos`` and keeps ``requests``, as ``METHOD path``, in the order they came."""

    daemon_threads = True

    def __init__(self, repos: list[Repo]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = {(repo.kind, repo.name): repo for repo in repos}
        self.requests: list[str] = []
        self.cuts: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serve_hub(*repos: Repo) -> Iterator[HubServer]:
    """A running hub with ``repos``."""
    server = HubServer(list(repos))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run_against(
    url: str, code: str, home: Path, timeout_s: float = 100, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python ``code`` in a new process whose hub is at ``url`` and whose HOME is ``home``."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    hub = {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home / "huggingface"),
        "HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env=kept | hub | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def play_scenes(
    url: str, code: str, home: Path, scenes: Mapping[str, Any], **environment: str
) -> dict[str, Any]:
    """Run ``code`` as :func:`run_against` does; it plays SCENES and prints what became of each."""
    done = run_against(url, code, home, 100, SCENES=json.dumps(scenes), **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if match := _API.fullmatch(path):
            kind: Any = match["kind"].removesuffix("s")
            self._serve(kind, match["name"], match["revision"] or "main", self._api, match)
        elif match := _RESOLVE.fullmatch(path):
            kind = "dataset" if match["kind"] else "model"
            self._serve(kind, match["name"], match["revision"], self._file, match)
        else:
            self._fail(404, "", "Not Found")

    def _serve(self, kind: str, name: str, revision: str, then: Any, match: re.Match[str]) -> None:
        repo = self.server.repos.get((kind, name))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == "hf_bad":
            self._fail(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.trouble == "private" and token != GOOD_TOKEN):
            status, message = (404, "Repository not found") if token else (401, "Invalid username")
            self._fail(status, "RepoNotFound", message)
        elif repo.trouble == "busy":
            self._fail(429, "", "Too Many Requests", {"Retry-After": "37"})
        elif repo.trouble == "broken":
            self._fail(503, "", "Service Unavailable")
        elif not repo.knows(revision):
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif repo.trouble == "gated" and token != GOOD_TOKEN and _guarded(match):
            status = 403 if token else 401
            self._fail(status, "GatedRepo", f"Access to {kind} {name} is restricted.")
        else:
            then(repo, match)

    def _api(self, repo: Repo, match: re.Match[str]) -> None:
        question = match["question"]
        if question == "tree":
            below = (match["path"] or "").strip("/")
            query = parse_qs(urlsplit(self.path).query)
            self._json(_tree(repo, below, query.get("recursive", ["false"])[0].lower() == "true"))
        elif question == "paths-info":
            asked = json.loads(self.body)["paths"]
            known = {entry["path"]: entry for entry in _tree(repo, "", recursive=True)}
            self._json([known[path] for path in asked if path in known])
        else:
            self._json(_info(repo))

    def _file(self, repo: Repo, match: re.Match[str]) -> None:
        content = repo.files.get(match["path"])
        if content is None:
            self._fail(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repo.commit})
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        self.send_response(206 if self.headers.get("Range") else 200)
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self._send(repo, match["path"], content[start:])

    def _send(self, repo: Repo, path: str, content: bytes) -> None:
        first = f"{repo.name}/{path}" not in self.server.cuts
        cut = repo.trouble == "cut" or (repo.trouble == "cut once" and first)
        if cut and not path.endswith((".md", ".json")):
            self.server.cuts.add(f"{repo.name}/{path}")
            content = content[: len(content) // 2] if first else b""
            self.close_connection = True
        self.wfile.write(content)

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _fail(
        self, status: int, code: str, message: str, more: Mapping[str, str] | None = None
    ) -> None:
        content = json.dumps({"error": message}).encode()
        self.send_response(status)
        for name, value in {
            "X-Error-Code": code,
            "X-Error-Message": message,
            **(more or {}),
        }.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


_API = re.compile(
    r"/api/(?P<kind>datasets|models)/(?P<name>[\w.-]+/[\w.-]+)"
    r"(?:/(?P<question>revision|tree|paths-info|auth-check)(?:/(?P<revision>[^/]+)(?P<path>/.*)?)?)?"
)
_RESOLVE = re.compile(
    r"/(?P<kind>datasets/)?(?P<name>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)


def _guarded(match: re.Match[str]) -> bool:
    """A gated repository's information is open to all; its files are not."""
    return match.re is _RESOLVE or match["question"] == "auth-check"


def _info(repo: Repo) -> dict[str, Any]:
    return {
        "_id": "0" * 24,
        "id": repo.name,
        "sha": repo.commit,
        "private": False,
        "gated": "auto" if repo.trouble == "gated" else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [{"rfilename": path} for path in repo.files],
    }


def _tree(repo: Repo, below: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{below}/" if below else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, content in sorted(repo.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            folder = prefix + "/".join(parts[:depth])
            if recursive or depth == 1:
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        if recursive or len(parts) == 1:
            oid = hashlib.sha1(content).hexdigest()
            entries[path] = {"type": "file", "path": path, "oid": oid, "size": len(content)}
    return list(entries.values())
