"""The whole gateway as one ASGI application in one process, for any ASGI server.

    uvicorn --factory gateway.asgi:app

`headgate serve` is faster and survives more: it has workers, a supervisor and the fast door. This has the same routes,
the same lifecycle and the same answers. Nobody archives, joins or monitors beside it: a later `headgate serve` over
the same data folder does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from starlette.applications import Starlette

from gateway import app as application
from gateway import state
from gateway.models.manager import Manager
from gateway.models.repository import Repository
from gateway.models.source import Source
from gateway.models.table import ServingTable
from gateway.models.wishes import WishBook
from gateway.server import hold
from gateway.settings import Settings, load
from gateway.telemetry import logs
from gateway.telemetry.store import CounterStore

TICK_S = 0.25


def app() -> Starlette:
    """The application, set by HEADGATE_* variables alone; it logs as `headgate serve` does. Raises SettingError."""
    settings = load({}, os.environ)
    logs.configure(settings.log_level)
    return create(settings)


def create(settings: Settings) -> Starlette:
    """The application with these settings; models are loaded from its start to its shutdown (ASGI lifespan).

    It holds the data folder meanwhile. Raises SettingError where another server does.
    """
    lock = hold(settings)
    table = ServingTable()
    counters = CounterStore()
    lifecycle = ThreadPoolExecutor(2, thread_name_prefix="lifecycle")
    loader = state.loader_for(settings)
    manager = Manager(
        Source(settings.models, settings.quiet_s),
        loader,
        table,
        WishBook(settings.data / "wishes.json"),
        lifecycle,
        counters.of,
        settings.poll_s,
    )
    repository = Repository(manager)
    gateway = state.assemble(
        settings,
        table,
        repository,
        lambda: repository.settled,
        counters,
        counters.snapshot,
        state.journal_for(settings, counters),
    )
    built = application.build(gateway)

    async def tick() -> None:
        while True:
            gateway.pipeline.tick()
            await asyncio.sleep(TICK_S)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(repository.run()), asyncio.create_task(tick())]
        try:
            yield
        finally:
            gateway.draining = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            lifecycle.shutdown(wait=False, cancel_futures=True)
            gateway.pipeline.close()
            gateway.feedback.close()
            os.close(lock)

    built.router.lifespan_context = lifespan
    return built
