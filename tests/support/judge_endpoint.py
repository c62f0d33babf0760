"""An OpenAI-compatible endpoint on loopback, and a judge that reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

ANSWERS = re.compile(r"<<<ANSWER (\d)\n(.*?)\nANSWER \d>>>", re.DOTALL)


@contextmanager
def endpoint(judge: Callable[[dict[str, str]], str], status: int = 200) -> Iterator[Any]:
    """An OpenAI-compatible server. ``judge`` sees answers by place and replies."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"path": self.path, "key": self.headers["Authorization"], "body": body})
            text = judge(dict(ANSWERS.findall(body["messages"][0]["content"])))
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
            reply |= {"choices": [choice]} if status == 200 else {"error": {"message": "no key"}}
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def prefers(word: str) -> Callable[[dict[str, str]], str]:
    """A judge that reads: the place whose answer has ``word``, else a tie."""

    def judge(answers: dict[str, str]) -> str:
        places = [place for place, text in answers.items() if word in text]
        return f"Compared.\n\n{places[0]}" if len(places) == 1 else "**Tie**"

    return judge
