"""The reference every ratio is taken against: raw ASGI under uvicorn, which reads the body and answers small JSON.

``python -m loadtests.echo`` runs it as fast as uvicorn goes: httptools, uvloop, one worker, no access log, no
middleware. It answers every path with the same 320 bytes, about what an inference of one row gets.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

REPLY = b'{"outputs":[{"name":"echo","datatype":"BYTES","shape":[1],"data":["%b"]}]}'
REPLY = REPLY % (b"e" * (320 - len(REPLY) + 2))
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(REPLY))],
}
BODY = {"type": "http.response.body", "body": REPLY}


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Read the whole body into one bytes object, as any endpoint must, and answer."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    b"".join(parts)
    await send(START)
    await send(BODY)


def serve(name: str, application: Any) -> None:
    """Serve an ASGI application on a free port of this machine and print where, until SIGTERM."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    print(f"{name} on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        application, http="httptools", loop="uvloop", ws="none", lifespan="off", access_log=False, log_level="warning"
    )
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    serve("echo", app)
