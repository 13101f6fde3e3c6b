"""What the processes of a server have in common: how they are started, and how they serve HTTP and end."""

from __future__ import annotations

import asyncio
import errno
import faulthandler
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
import uvloop
from starlette.applications import Starlette

from gateway import host
from gateway.errors import SettingError
from gateway.http import fast
from gateway.settings import Settings
from gateway.state import Gateway
from gateway.workers.board import Board, RunFolder
from gateway.workers.child import STARTUP_FAILURE

log = logging.getLogger("headgate.process")

TICK_S = 0.25
PAUSE_S = 0.005
"""How long a worker with many more connections than another leaves new ones to that one."""

LATE_S = 0.1
"""How long a client that came last has for its request to arrive."""

AT_ONCE = 64
"""Connections that are accepted at one wake-up."""

SLACK = 2
"""Connections by which workers may differ before that happens."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands: its slot, its listening socket, the pipe that ends with the supervisor, the files."""

    slot: int
    listener: socket.socket
    lifeline: int
    folder: RunFolder
    board: Board
    settings: Settings


class Acceptor:
    """Takes connections from a listening socket that several processes share.

    None while this process has clearly more of them than another: otherwise the first process to wake would take all,
    and the others would idle. But as many as that allows at each wake-up: a turn of a busy loop takes milliseconds, and
    who is not let in soon is not refused soon either.
    """

    def __init__(
        self, listener: socket.socket, make: Callable[[], asyncio.Protocol], count: Callable[[], int], cap: int
    ) -> None:
        self._listener = listener
        self._make = make
        self._count = count
        self._cap = cap
        self._loop = asyncio.get_running_loop()
        self._others: Callable[[], int | None] = lambda: None
        self._changed: Callable[[int], None] = lambda count: None
        self._open = self._over = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def share(self, fewest: Callable[[], int | None], changed: Callable[[int], None]) -> None:
        """Look at the other processes: `fewest` is the least number of connections of any, None for no others."""
        self._others = fewest
        self._changed = changed

    def start(self) -> None:
        """Begin to accept, unless it has been closed."""
        if not self._open and not self._over:
            self._open = True
            self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Stop accepting. Whom the system has let in already is taken: closing would reset those connections."""
        self._over = True
        if self._open:
            self._open = False
            self._loop.remove_reader(self._listener)
            with suppress(OSError):
                while self._count() + len(self._tasks) < self._cap and self._take():
                    pass
        self._listener.close()

    async def wait_closed(self) -> None:
        """Until who came last has a protocol, and has had the time to send its request."""
        if self._tasks:
            await asyncio.wait(self._tasks)
            await asyncio.sleep(LATE_S)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._open:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        # Those that are on their way to their protocol count too.
        count, fewest = self._count() + len(self._tasks), self._others()
        most = self._cap if fewest is None else min(self._cap, fewest + SLACK + 1)
        if count >= most:
            self._pause(PAUSE_S)
            return
        most = min(most, count + AT_ONCE)
        try:
            while count < most and self._take():
                count += 1
        except OSError as error:
            log.error("cannot accept", extra={"event": "accept-failed", "reason": os.strerror(error.errno or 0)})
            # Out of descriptors or memory: asking again at once would only burn the processor.
            self._pause(1.0 if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM) else PAUSE_S)
        self._changed(count)

    def _take(self) -> bool:
        """Accept one connection; False where there is none. Raises OSError where it cannot be accepted."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        connection.setblocking(False)
        task = self._loop.create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _serve(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, connection)
        except OSError:
            connection.close()


class Server(uvicorn.Server):
    """uvicorn with connections from an Acceptor. Readiness goes off at the first signal; a second one is quick."""

    def __init__(
        self, app: Starlette, gateway: Gateway, listener: socket.socket, cap: int, *, inference: bool = True
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=fast.door(gateway, inference=inference),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=math.ceil(gateway.settings.drain_s),
            )
        )
        self.gateway = gateway
        self._listener = listener
        self._cap = cap
        self._stop_at = math.inf
        self._over = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.acceptor: Acceptor | None = None
        self.is_retiring: Callable[[], bool] = lambda: False
        self.leave: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn; the acceptor is made here and started by its owner."""
        self._loop = asyncio.get_running_loop()
        self.acceptor = Acceptor(self._listener, self._connection, self.connections, self._cap)
        self.servers = [self.acceptor]  # type: ignore[list-item]
        self.started = True

    async def main_loop(self) -> None:
        """See uvicorn, which looks ten times a second whether it is to end: every process of a server that idles."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(to_tick()):
                    await self._over.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn, which tells only those connections to end that it knows when it begins: so wait for the last.

        One that nobody tells is served on for as long as its client likes, and the drain takes all of its time.
        """
        self.leave()
        if self.acceptor is not None:
            self.acceptor.close()
            await self.acceptor.wait_closed()
        await super().shutdown(sockets)

    def _connection(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(config=self.config, server_state=self.server_state, app_state={})
        return protocol

    def connections(self) -> int:
        """Open connections."""
        return len(self.server_state.connections)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for a signal: only flags are set here. A process with a successor has nothing to wait for."""
        if self.gateway.draining:
            self.force_exit = True
            self.stop()
        elif self.is_retiring():
            self._end()
        else:
            self.gateway.draining = True
            self._stop_at = time.monotonic() + self.gateway.settings.grace_s
            if not self.gateway.settings.grace_s:
                self._end()

    def stop(self) -> None:
        """Finish what is in flight and end."""
        self.gateway.draining = True
        self._end()

    def _end(self) -> None:
        # Also called for a signal, between any two steps of the loop.
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._over.set)

    def tick(self, now: float) -> None:
        """Set the coarse clock and end connections that take too long."""
        self.gateway.clock.now = now
        if now >= self._stop_at:
            self._end()
        self.gateway.pipeline.tick()
        for connection in list(self.server_state.connections):
            if isinstance(connection, fast.FastProtocol):
                connection.check(now)


def to_tick(period_s: float = TICK_S) -> float:
    """Seconds to the next multiple of a period: what goes by it comes at one moment, and an idle process wakes once."""
    return period_s - time.monotonic() % period_s


def watch_lifeline(lifeline: int, ended: Callable[[], None]) -> None:
    """Call `ended` when the supervisor is gone: then nobody holds the other end of the pipe."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        loop.remove_reader(lifeline)
        ended()

    loop.add_reader(lifeline, readable)


def run(main: Callable[[Place], Any], place: Place) -> int:
    """The life of one process: `main` is a coroutine function that takes its Place. Returns the exit code."""
    host.set_name(f"headgate-{place.slot}")
    # Ctrl+C reaches the whole group; the supervisor says what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP})
    with (
        open(place.folder.crash(place.slot), "w") as crash,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        # Not to standard error, where every line is JSON. The supervisor reads which thread it was.
        faulthandler.enable(crash, all_threads=True)
        try:
            runner.run(main(place))
        except SettingError as error:
            log.critical("cannot start", extra={"event": "cannot-start", "reason": error.message})
            return STARTUP_FAILURE
        except Exception:
            log.critical("process failed", exc_info=True, extra={"event": "process-failed"})
            return 1
        finally:
            faulthandler.disable()
    return 0
