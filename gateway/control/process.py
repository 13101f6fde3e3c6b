"""The control process: the lifecycle of all models, the serving plan, the orders of workers, the admin port."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

from gateway import app, state
from gateway.control.aside import Aside
from gateway.control.blame import Blame, withdraw
from gateway.control.fleet import Fleet, FleetCollector, FleetLoader, FleetTable, Planned
from gateway.control.orders import OrderDesk
from gateway.models.manager import Manager
from gateway.models.repository import Repository
from gateway.models.source import Source
from gateway.models.wishes import WishBook
from gateway.telemetry.store import CounterStore
from gateway.workers.bell import Bell
from gateway.workers.process import Place, Server, to_tick, watch_lifeline
from gateway.workers.worker import read_all

log = logging.getLogger("headgate.control")

LOADS = 4
"""Versions of different models that are tried or loaded at once: a few that hang must not hold up the others."""

JUDGE_S = 0.5
"""How often the control process looks for crashes of workers unless the bell rings."""

NICENESS = 5
"""The control process stands behind the workers when cores are short."""


async def main(place: Place) -> None:
    """Run the lifecycle until told to stop. What the last plan says is taken over, not loaded anew."""
    os.nice(NICENESS)
    settings = place.settings
    workers = state.worker_count(settings)
    deaths = Blame(place.folder.deaths, settings.data / "blocked.json")
    fleet = Fleet(place.folder, place.board, workers, settings.quarantine_timeout_s, deaths)
    repositories: list[Repository] = []
    table = FleetTable(fleet, lambda: fleet.plan.settled or repositories[0].settled)
    counters = CounterStore(place.folder.counters(place.slot))
    lifecycle = ThreadPoolExecutor(LOADS, thread_name_prefix="lifecycle")
    manager = Manager(
        Source(settings.models, settings.quiet_s),
        FleetLoader(state.loader_for(settings), fleet),
        table,
        WishBook(settings.data / "wishes.json"),
        lifecycle,
        counters.of,
        settings.poll_s,
    )
    _take_over(manager, fleet, counters)
    repository = Repository(manager)
    repositories.append(repository)
    gateway = state.assemble(
        settings, table, repository, lambda: fleet.plan.settled, counters, lambda: read_all(place.folder)
    )
    aside = Aside(settings, counters)
    for collector in (FleetCollector(fleet), *aside.collectors()):
        gateway.registry.register(collector)
    admin = app.build(gateway, admin=True, more=aside.routes())
    server = Server(admin, gateway, place.listener, cap=256, inference=False)
    watch_lifeline(place.lifeline, server.stop)
    desk = await OrderDesk(repository, deaths.pardon).open(place.folder.control)
    life = asyncio.create_task(repository.run())
    life.add_done_callback(lambda task: _ended(task, server))
    beat = asyncio.create_task(_beat(place, server))
    aside.start()
    judge = asyncio.create_task(_judge(manager, fleet))
    judge.add_done_callback(lambda task: _ended(task, server))
    try:
        await server.serve()
    finally:
        desk.close()
        life.cancel()
        await asyncio.to_thread(aside.stop)
        beat.cancel()
        judge.cancel()
        lifecycle.shutdown(wait=False, cancel_futures=True)
        gateway.feedback.close()


def _take_over(manager: Manager, fleet: Fleet, counters: CounterStore) -> None:
    """A control process that comes after another one goes on from its plan."""
    for name, model in fleet.plan.models.items():
        serving = [version for version in model.versions if version.serves]
        loaded = {
            version.files(): Planned(name, version, fleet, counters.of(name, version.version)) for version in serving
        }
        if serving:
            manager.adopt(name, serving[0].config, model.aliases, loaded)


async def _judge(manager: Manager, fleet: Fleet) -> None:
    """Withdraw versions that crash workers, and have the others that did so looked at more closely."""
    bell = Bell()
    while True:
        fleet.blame.look()
        if fleet.blame.is_calm:
            await bell.wait(to_tick(JUDGE_S))
            continue
        serving = [
            record.servable
            for entry in manager.entries.values()
            for record in entry.records.values()
            if isinstance(record.servable, Planned)
        ]
        guilty = [(each.key, reason) for each in serving if (reason := fleet.blame.reason(each.key))]
        withdraw(manager, guilty)
        if fleet.suspect(serving, time.monotonic()) or guilty:
            manager.step(time.monotonic())
        await bell.wait(to_tick(JUDGE_S))


def _ended(task: asyncio.Task[None], server: Server) -> None:
    """The lifecycle never ends by itself: without it the server would go stale without a word."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("lifecycle failed", exc_info=task.exception(), extra={"event": "lifecycle-failed"})
        server.stop()


async def _beat(place: Place, server: Server) -> None:
    while True:
        if server.acceptor is not None:
            server.acceptor.start()
        server.tick(time.monotonic())
        place.board.beat(place.slot, time.monotonic_ns(), server.connections())
        await asyncio.sleep(to_tick())
