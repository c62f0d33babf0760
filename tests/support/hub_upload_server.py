"""A stand-in of the hub that takes uploads, for the real client to talk to in this process.

It keeps files and large objects as the hub does: an object that is there already is not asked for
again, and a file that is unchanged is no part of a commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

WRITER, READER, EXPIRED = "hf_writer", "hf_reader", "hf_expired"
LARGE = (".safetensors", ".gguf", "tokenizer.json")

LICENCES = ("apache-2.0", "mit")
"""Of the identifiers on the hub's page on licences, those that medcot names."""

LIBRARIES = ("peft", "transformers")
"""Of the libraries in the hub's npm package @huggingface/tasks 0.21.54, those that medcot names."""


def problems_of_card(content: str) -> list[str]:
    """What the hub's documentation of a model card's metadata forbids, as far as it is said there.

    The hub's own validator is a program of the hub's, which nobody else has. What it checks, says
    modelcard.md of the repository huggingface/hub-docs: model-index, datasets and license.
    """
    found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    data: Any = yaml.safe_load(found[1]) if found else None
    if not isinstance(data, dict):
        return ["no metadata between two lines of three dashes"]
    texts = ("license", "library_name", "pipeline_tag", "base_model", "base_model_relation")
    problems = [f"{one} is not text" for one in texts if not isinstance(data.get(one, ""), str)]
    lists = (data.get("tags", []), data.get("datasets", []))
    if not all(isinstance(one, list) and all(isinstance(x, str) for x in one) for one in lists):
        problems.append("tags and datasets are lists of texts")
    if data.get("license", "mit") not in LICENCES:
        problems.append("license is no identifier of the hub")
    if data.get("library_name", "peft") not in LIBRARIES:
        problems.append("library_name is none of the hub's libraries")
    for name in (
        *data.get("datasets", []),
        *([data["base_model"]] if "base_model" in data else []),
    ):
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            problems.append(str(error))
    if not re.fullmatch(r"[a-z]{2,3}", str(data.get("language", "en"))):
        problems.append("language is no ISO 639 code")
    relations = ("adapter", "merge", "quantized", "finetune")
    if data.get("base_model_relation", "adapter") not in relations:
        problems.append("base_model_relation is unknown")
    for index, model in enumerate(data.get("model-index", [])):
        if not model.get("name"):
            problems.append(f"model-index[{index}].name is missing")
        for result in model.get("results", []):
            needed = [
                result.get("task", {}).get("type"),
                result.get("dataset", {}).get("type"),
                result.get("dataset", {}).get("name"),
                *(one.get("type") for one in result.get("metrics", [{}])),
            ]
            if not all(isinstance(one, str) and one for one in needed):
                problems.append(f"model-index[{index}]: a result lacks task, dataset or metric")
            if any(not isinstance(x.get("value"), int | float) for x in result.get("metrics", [])):
                problems.append(f"model-index[{index}]: a metric lacks its value")
    return problems


class UploadServer(ThreadingHTTPServer):
    """``cut`` drops the next uploads of large objects; ``spoil`` keeps a large file wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.cards: list[str] = []
        self.puts: list[str] = []
        self.cut = 0
        self.spoil = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, *, private: bool = True, files: dict[str, bytes] | None = None):
        self.repos[name] = {"private": private, "files": dict(files or {}), "commits": []}

    def head(self, name: str) -> str:
        repo = self.repos[name]
        text = json.dumps([name, *repo["commits"]])
        return hashlib.sha1(text.encode()).hexdigest()


@contextmanager
def serve_uploads() -> Iterator[UploadServer]:
    server = UploadServer()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: UploadServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        oid = self.path.rsplit("/", 1)[1]
        self.server.puts.append(oid)
        if self.server.cut:
            self.server.cut -= 1
            self.close_connection = True
            self.connection.close()
            return
        self.server.objects[oid] = self.body
        self._json({})

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token in ("", EXPIRED):
            self._json({"error": "Invalid credentials"}, 401)
        elif path == "/api/whoami-v2":
            self._json({"name": "ann", "type": "user", "orgs": []})
        elif path == "/api/validate-yaml":
            content = json.loads(self.body)["content"]
            self.server.cards.append(content)
            errors = [{"message": one} for one in problems_of_card(content)]
            self._json({"errors": errors, "warnings": []}, 400 if errors else 200)
        elif token == READER:
            self._json({"error": "You don't have the rights"}, 403)
        elif path == "/api/repos/create":
            self._create(json.loads(self.body))
        else:
            self._of_repo(path)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'ann'}/{asked['name']}"
        status = 409 if name in self.server.repos else 200
        if status == 200:
            private = asked.get("private") or asked.get("visibility") == "private"
            self.server.add(name, private=bool(private))
        self._json({"url": f"{self.server.url}/{name}", "name": name}, status)

    def _of_repo(self, path: str) -> None:
        found = re.fullmatch(
            r"(?:/api/models)?/(?P<name>[\w.-]+/[\w-][\w.-]*?)(?P<rest>(?:\.git/|/).*)?", path
        )
        repo = self.server.repos.get(found["name"]) if found else None
        if found is None or repo is None:
            self._json({"error": "Repository not found"}, 404)
            return
        name, rest = found["name"], found["rest"] or ""
        if rest.endswith("info/lfs/objects/batch"):
            self._json({"transfer": "basic", "objects": self._batch()})
        elif rest.startswith("/preupload/"):
            self._json({"files": [self._mode(repo, one) for one in json.loads(self.body)["files"]]})
        elif rest.startswith("/commit/"):
            self._commit(name, repo)
        elif rest.startswith("/paths-info/"):
            asked = parse_qs(self.body.decode())["paths"]
            self._json([self._info(p, repo["files"][p]) for p in asked if p in repo["files"]])
        else:
            facts = {"_id": "0" * 24, "id": name, "sha": self.server.head(name), "tags": []}
            facts |= {"private": repo["private"], "gated": False, "disabled": False}
            self._json({**facts, "downloads": 0, "likes": 0, "siblings": []})

    def _batch(self) -> list[dict[str, Any]]:
        objects = []
        for one in json.loads(self.body)["objects"]:
            entry = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.server.objects:
                href = f"{self.server.url}/lfs/{one['oid']}"
                entry["actions"] = {"upload": {"href": href}}
            objects.append(entry)
        return objects

    def _mode(self, repo: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
        path, known = one["path"], repo["files"].get(one["path"])
        large = path.endswith(LARGE)
        oid = None
        if known is not None:
            blob = b"blob %d\0" % len(known) + known
            oid = (hashlib.sha256(known) if large else hashlib.sha1(blob)).hexdigest()
        mode = "lfs" if large else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _commit(self, name: str, repo: dict[str, Any]) -> None:
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self.server.objects[value["oid"]]
                repo["files"][value["path"]] = content[:-1] if self.server.spoil else content
        repo["commits"].append(hashlib.sha1(self.body).hexdigest())
        oid = self.server.head(name)
        url = f"{self.server.url}/{name}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    @staticmethod
    def _info(path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
        entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if path.endswith(LARGE):
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 100}
        return entry

    def _json(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
