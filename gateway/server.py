"""The server process: a socket, the lifecycle task and uvicorn, started, served and shut down."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn
import uvloop

from gateway import __version__, app
from gateway.errors import SettingError
from gateway.http import fast
from gateway.settings import Settings
from gateway.state import Gateway, assemble
from gateway.telemetry import logs

log = logging.getLogger("headgate.server")

BACKLOG = 256
TICK_S = 0.25


def bind(settings: Settings) -> socket.socket:
    """The listening socket. Raises SettingError, naming host and port."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingError(f"cannot listen on host {settings.host} port {settings.port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """uvicorn, but readiness goes off at the first signal, and a second one does not wait for requests."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal handler: only flags are set here."""
        if self._gateway.draining:
            self.force_exit = True
        self._gateway.draining = True
        self.should_exit = True


async def serve(settings: Settings, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight."""
    gateway = assemble(settings)
    config = uvicorn.Config(
        app.build(gateway),
        http=fast.door(gateway),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )
    server = _Server(config, gateway)
    lifecycle = asyncio.create_task(gateway.repository.run())
    sweeper = asyncio.create_task(_sweep(gateway, server))
    lifecycle.add_done_callback(lambda task: _lifecycle_ended(task, server))
    address = listener.getsockname()
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    url = f"http://{host}:{address[1]}"
    print(f"Headgate {__version__} serves {settings.models} on {url}", file=sys.stdout, flush=True)
    log.info("started", extra={"event": "started", "url": url, "version": __version__})
    try:
        await server.serve([listener])
    finally:
        lifecycle.cancel()
        sweeper.cancel()
        gateway.close()
    log.info("stopped", extra={"event": "stopped"})


async def _sweep(gateway: Gateway, server: _Server) -> None:
    """Set the coarse clock and end connections that take too long, a few times a second."""
    while True:
        gateway.clock.now = time.monotonic()
        for connection in list(server.server_state.connections):
            if isinstance(connection, fast.FastProtocol):
                connection.check(gateway.clock.now)
        await asyncio.sleep(TICK_S)


def _lifecycle_ended(task: asyncio.Task[None], server: _Server) -> None:
    """The lifecycle never ends by itself: without it the server would go stale without a word."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("lifecycle failed", exc_info=task.exception(), extra={"event": "lifecycle-failed"})
        server.should_exit = True


def run(settings: Settings) -> int:
    """The whole life of the process; returns its exit code."""
    logs.configure(settings.log_level)
    listener = bind(settings)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, listener))
    except KeyboardInterrupt:
        pass
    finally:
        listener.close()
    return 0
