"""Orders: what workers pass on to the control process, one JSON line each way over a Unix socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.errors import HeadgateError, NotReady, ServerError
from gateway.models.repository import Repository

MAX_LINE = 64 << 10


class Order(msgspec.Struct, frozen=True):
    """One of load, reload, unload, alias; for alias `version` None removes it."""

    verb: str
    model: str
    version: int | None = None
    alias: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What became of an order; status 200 is success."""

    status: int = 200
    code: str = ""
    message: str = ""
    headers: dict[str, str] = {}


class OrderError(HeadgateError):
    """An error that the control process gave: it is passed on as it is."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message, headers=answer.headers)
        # The class has no status of its own: each of these errors brings the one it was given.
        self.status = answer.status  # type: ignore[misc]
        self.code = answer.code  # type: ignore[misc]


class RemoteRepository:
    """A worker's repository: every order goes to the control process and is awaited."""

    def __init__(self, path: Path, timeout_s: float = 180.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    async def load(self, name: str, version: int | None = None) -> None:
        """See Repository."""
        await self._order(Order("load", name, version))

    async def reload(self, name: str, version: int | None = None) -> None:
        """See Repository."""
        await self._order(Order("reload", name, version))

    async def unload(self, name: str, version: int | None = None) -> None:
        """See Repository."""
        await self._order(Order("unload", name, version))

    async def move_alias(self, name: str, alias: str, version: int | None) -> None:
        """See Repository."""
        await self._order(Order("alias", name, version, alias))

    async def _order(self, order: Order) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await asyncio.open_unix_connection(self._path, limit=MAX_LINE)
                try:
                    writer.write(msgspec.json.encode(order) + b"\n")
                    line = await reader.readline()
                finally:
                    writer.close()
            answer = msgspec.json.decode(line, type=Answer)
        except (OSError, TimeoutError, ValueError, msgspec.DecodeError):
            raise NotReady("the control process does not answer; versions cannot be changed now") from None
        if answer.status != 200:
            raise OrderError(answer)


class OrderDesk:
    """The control process's end of the socket."""

    def __init__(
        self, repository: Repository, pardon: Callable[[str, int | None], None] = lambda model, version: None
    ) -> None:
        """`pardon` is told which versions are to be loaded anew whatever they did to workers before."""
        self._repository = repository
        self._pardon = pardon

    async def open(self, path: Path) -> asyncio.Server:
        """Take orders at `path`, which only this user can reach."""
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, path, limit=MAX_LINE)
        os.chmod(path, 0o600)
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._carry_out(msgspec.json.decode(await reader.readline(), type=Order))
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()
        except (ConnectionError, ValueError, msgspec.DecodeError):
            pass
        finally:
            writer.close()

    async def _carry_out(self, order: Order) -> Answer:
        repository = self._repository
        try:
            if order.verb == "alias":
                await repository.move_alias(order.model, order.alias, order.version)
            elif order.verb == "load":
                await repository.load(order.model, order.version)
            elif order.verb == "reload":
                self._pardon(order.model, order.version)
                await repository.reload(order.model, order.version)
            elif order.verb == "unload":
                await repository.unload(order.model, order.version)
            else:
                raise ServerError(f"there is no order {order.verb!r}")
        except HeadgateError as error:
            return Answer(error.status, error.code, error.message, error.headers)
        return Answer()
