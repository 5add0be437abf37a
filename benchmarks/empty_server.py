"""The floor of a service: an ASGI application that reads the body and answers nothing, under the same server with the same options.

Run as a program it prints its URL as one line of JSON, like `python -m featurestore_server --json`.
"""

from __future__ import annotations

import json
import socket
from typing import Any

import uvicorn

_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"2")]


async def empty(scope: Any, receive: Any, send: Any) -> None:
    """Answer `{}`."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": b"{}"})


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}), flush=True)
    options: dict[str, Any] = {"loop": "uvloop", "http": "httptools", "log_level": "warning", "access_log": False}
    uvicorn.Server(uvicorn.Config(empty, lifespan="off", server_header=False, **options)).run([listener])
