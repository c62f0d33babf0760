"""A model server without a model: it listens on the socket it is given, as the real ones do.

It says ``word word … </think> done``, slowly where the prompt says so.
"""

import asyncio
import json
import sys

import uvicorn


async def application(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["path"] == "/health":
        await respond(send, b"{}")
        return
    asked = json.loads(body)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    slow = "slowly" in str(asked["prompt"])
    for text in [*["word "] * (10_000 if slow else 2), "</think>", " done"]:
        await send_event(send, {"choices": [{"text": text, "finish_reason": None}]})
        await asyncio.sleep(0.02 if slow else 0)
    await send_event(send, {"choices": [{"text": "", "finish_reason": "stop"}]})
    await send({"type": "http.response.body"})


async def send_event(send, event):
    content = f"data: {json.dumps(event)}\n\n".encode()
    await send({"type": "http.response.body", "body": content, "more_body": True})


async def respond(send, content):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": content})


if __name__ == "__main__":
    if sys.argv[2:] == ["fails"]:
        sys.exit("no room for the model")
    uvicorn.run(application, uds=sys.argv[1], log_level="error", lifespan="off")
