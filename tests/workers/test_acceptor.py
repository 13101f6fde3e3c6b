"""The acceptor: once closed it stays closed, whoever still means to start it."""

from __future__ import annotations

import asyncio
import socket

from gateway.workers.process import Acceptor


class Greeter(asyncio.Protocol):
    """Says a word to whom it meets, and that was it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"welcome")
        transport.close()


def test_one_that_was_closed_takes_those_who_were_let_in_and_cannot_be_started_or_closed_again() -> None:
    """What shows signs of life starts it again and again, also between its end and that of the process."""

    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        acceptor = Acceptor(listener, Greeter, lambda: 0, 10)
        acceptor.start()
        address = listener.getsockname()
        with socket.create_connection(address) as late:
            late.setblocking(False)
            acceptor.close()
            acceptor.start()
            await acceptor.wait_closed()
            acceptor.start()
            acceptor.close()
            assert await asyncio.get_running_loop().sock_recv(late, 100) == b"welcome"
        assert listener.fileno() == -1

    asyncio.run(main())
