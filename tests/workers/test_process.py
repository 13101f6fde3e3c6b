"""The end of a process that serves: connections that came last are answered, and told to end like all others."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gateway import app
from gateway.workers.process import Server
from tests.http.rig import Rig

ASK = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize("said", [b"", ASK], ids=["who says nothing", "who asks"])
def test_a_client_that_comes_last_is_answered_and_told_to_end_like_the_others(said: bytes) -> None:
    """1. It connects. 2. The server is told to end before the connection has a protocol. Result: no drain is needed."""

    async def end() -> bytes:
        gateway = Rig(drain_s=1.0).gateway
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            server = Server(app.build(gateway), gateway, listener, cap=8)
            server.config.load()
            server.lifespan = server.config.lifespan_class(server.config)
            await server.startup()
            assert server.acceptor is not None
            server.acceptor.start()
            with socket.create_connection(listener.getsockname()) as client:
                client.sendall(said)
                await server.shutdown()
                assert server.connections() == 0
                client.settimeout(20)
                return b"".join(iter(lambda: client.recv(1 << 16), b""))

    reply = asyncio.run(end())
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n") if said else reply == b""
