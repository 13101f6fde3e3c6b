"""Orders from workers to the control process: what comes back is what the repository said."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.control.orders import MAX_LINE, OrderDesk, RemoteRepository
from gateway.errors import Conflict, HeadgateError, LoadRejected, NotReady, UnknownModel
from gateway.models.repository import Repository


class FakeRepository:
    """Remembers what it was asked, and raises what it is told to."""

    def __init__(self, error: HeadgateError | None = None) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.error = error

    async def _do(self, *asked: Any) -> None:
        self.asked.append(asked)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error

    async def load(self, name: str, version: int | None = None) -> None:
        await self._do("load", name, version)

    async def reload(self, name: str, version: int | None = None) -> None:
        await self._do("reload", name, version)

    async def unload(self, name: str, version: int | None = None) -> None:
        await self._do("unload", name, version)

    async def move_alias(self, name: str, alias: str, version: int | None) -> None:
        await self._do("alias", name, alias, version)


def exchange(
    tmp_path: Path, repository: FakeRepository, use: Callable[[RemoteRepository, Path], Awaitable[Any]], **desk: Any
) -> Any:
    """Run `use` against a desk of this repository."""

    async def run() -> Any:
        path = tmp_path / "control.sock"
        async with await OrderDesk(cast(Repository, repository), **desk).open(path):
            try:
                return await use(RemoteRepository(path, timeout_s=5), path)
            finally:
                await others()

    return asyncio.run(run())


async def others() -> None:
    """Wait until the other end has closed its connections."""
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)


def test_every_order_reaches_the_repository_as_it_was_given(tmp_path: Path) -> None:
    repository = FakeRepository()

    async def use(remote: RemoteRepository, _: Path) -> None:
        await remote.load("m", 3)
        await remote.load("m")
        await remote.reload("m", None)
        await remote.unload("m", 2)
        await remote.move_alias("m", "champion", 4)
        await remote.move_alias("m", "champion", None)

    exchange(tmp_path, repository, use)
    assert repository.asked == [
        ("load", "m", 3),
        ("load", "m", None),
        ("reload", "m", None),
        ("unload", "m", 2),
        ("alias", "m", "champion", 4),
        ("alias", "m", "champion", None),
    ]


@pytest.mark.parametrize(
    "error",
    [UnknownModel("m"), Conflict("it is the champion"), LoadRejected("no model"), NotReady("later", retry_after_s=9)],
    ids=lambda error: error.code,
)
def test_an_error_comes_back_with_its_status_code_sentence_and_headers(error: HeadgateError, tmp_path: Path) -> None:
    async def use(remote: RemoteRepository, _: Path) -> None:
        with pytest.raises(HeadgateError) as caught:
            await remote.load("m")
        got = caught.value
        assert (got.status, got.code, got.message, got.headers) == (
            *(error.status, error.code, error.message, error.headers),
        )

    exchange(tmp_path, FakeRepository(error), use)


def test_orders_that_come_at_once_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """1. A load that never ends. 2. Another order. Result: the other one is carried out."""
    began, ended = asyncio.Event(), asyncio.Event()

    class Stuck(FakeRepository):
        async def load(self, name: str, version: int | None = None) -> None:
            began.set()
            await ended.wait()

    repository = Stuck()

    async def use(remote: RemoteRepository, _: Path) -> None:
        stuck = asyncio.create_task(remote.load("m"))
        await began.wait()
        await remote.unload("m")
        assert not stuck.done()
        ended.set()
        await stuck

    exchange(tmp_path, repository, use)
    assert repository.asked == [("unload", "m", None)]


def test_without_a_control_process_an_order_is_answered_that_it_cannot_be_carried_out_now(tmp_path: Path) -> None:
    async def use() -> None:
        with pytest.raises(NotReady, match="the control process does not answer"):
            await RemoteRepository(tmp_path / "nobody.sock").load("m")

    asyncio.run(use())


@pytest.mark.parametrize("how", ["silent", "gone", "noise"])
def test_a_control_process_that_hangs_or_ends_or_raves_does_not_hold_an_order(how: str, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        if how == "silent":
            await reader.read()
        elif how == "noise":
            writer.write(b"x" * (2 * MAX_LINE))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def use() -> None:
        path = tmp_path / "control.sock"
        async with await asyncio.start_unix_server(serve, path):
            with pytest.raises(NotReady):
                await RemoteRepository(path, timeout_s=0.2).load("m")
            await others()

    asyncio.run(use())


@pytest.mark.parametrize("line", [b"", b"\n", b"no json\n", b'{"verb":3}\n', b'{"verb":"load"}\n', b"x" * 200_000])
def test_noise_at_the_desk_ends_its_connection_and_nothing_else(line: bytes, tmp_path: Path) -> None:
    repository = FakeRepository()

    async def use(remote: RemoteRepository, path: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(line)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await remote.load("m")

    exchange(tmp_path, repository, use)
    assert repository.asked == [("load", "m", None)]


def test_an_unknown_order_is_refused(tmp_path: Path) -> None:
    async def use(_: RemoteRepository, path: Path) -> bytes:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"verb":"dance","model":"m"}\n')
        line = await reader.readline()
        writer.close()
        return line

    repository = FakeRepository()
    assert b'"status":500' in exchange(tmp_path, repository, use)
    assert repository.asked == []


def test_only_a_reload_pardons_and_does_so_before_the_version_is_tried(tmp_path: Path) -> None:
    repository = FakeRepository()

    async def use(remote: RemoteRepository, _: Path) -> None:
        await remote.load("m", 1)
        await remote.unload("m", 1)
        await remote.reload("m", 2)

    exchange(tmp_path, repository, use, pardon=lambda *what: repository.asked.append(("pardon", *what)))
    assert repository.asked[2:] == [("pardon", "m", 2), ("reload", "m", 2)]


def test_only_this_user_may_give_orders(tmp_path: Path) -> None:
    async def use(_: RemoteRepository, path: Path) -> int:
        return path.stat().st_mode & 0o777

    assert exchange(tmp_path, FakeRepository(), use) == 0o600
