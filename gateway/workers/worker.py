"""A worker: one process that answers requests with the versions of the serving plan."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from gateway import app, host, state
from gateway.control.orders import RemoteRepository
from gateway.inference.pipeline import Pipeline
from gateway.models.table import ServingTable
from gateway.routing import plan as plans
from gateway.telemetry.store import CounterStore, Snapshot
from gateway.workers.bell import Bell
from gateway.workers.board import RunFolder, successor_slot, worker_slots
from gateway.workers.follower import Failure, Follower
from gateway.workers.memory import MemoryGuard
from gateway.workers.notes import Notes
from gateway.workers.process import Place, Server, to_tick, watch_lifeline

log = logging.getLogger("headgate.worker")

STUCK_NS = 2_000_000_000
"""How long after the last deadline of its calls a run is given up."""

FOLLOW_S = 0.02
"""How often a worker looks how far the versions are that it loads or lets go."""

SILENT_NS = 1_000_000_000
"""After this time without a sign of life, four times what is between two, new connections are not left to a worker."""

PATIENT_TRIES = 5
"""How often a new worker tries to load what others answer with before it serves without: about eight seconds."""


async def main(place: Place) -> None:
    """Follow the plan, serve, and drain when told to."""
    table = ServingTable()
    counters = CounterStore(place.folder.counters(place.slot))
    loader = ThreadPoolExecutor(1, thread_name_prefix="load")
    notes = Notes(place.folder.notes(place.slot))
    _forget_gauges(counters)
    follower = Follower(place.folder.plan, state.loader_for(place.settings), table, loader, counters.of, notes)
    gateway = state.assemble(
        place.settings,
        table,
        RemoteRepository(place.folder.control),
        Readiness(follower, place),
        counters,
        lambda: read_all(place.folder),
        state.journal_for(place.settings, counters),
    )
    server = Server(app.build(gateway), gateway, place.listener, host.connection_cap(host.open_files()) or 1 << 20)
    server.is_retiring = lambda: place.board.is_retiring(place.slot)
    server.leave = lambda: place.board.acknowledge(place.slot, follower.generation, ready=False)
    watch_lifeline(place.lifeline, server.stop)
    limit = host.worker_memory(
        host.memory(), state.worker_count(place.settings), place.settings.max_worker_memory_bytes
    )
    guard = MemoryGuard(gateway.pipeline, limit)
    tasks = [
        asyncio.create_task(_follow(place, follower, server)),
        asyncio.create_task(_beat(place, server, guard, counters)),
    ]
    try:
        await server.serve()
    finally:
        for task in tasks:
            task.cancel()
        loader.shutdown(wait=False, cancel_futures=True)
        gateway.pipeline.close()
        gateway.feedback.close()
        _forget_gauges(counters)
        if stuck(gateway.pipeline, time.monotonic_ns()):
            # The interpreter would wait for that thread for ever.
            logging.shutdown()
            os._exit(1)


def stuck(pipeline: Pipeline, now_ns: int) -> str:
    """The version whose run nobody waits for any more and which does not come back; empty where there is none.

    Nothing can stop such a run, and until it ends its version answers nothing in this process.
    """
    for engine in pipeline.engines():
        if engine.running is not None:
            latest_ns = max(call.deadline_ns for call in engine.running.calls)
            if now_ns > latest_ns + STUCK_NS and all(call.gone for call in engine.running.calls):
                return f"{engine.servable.model}/{engine.servable.version}"
    return ""


class Readiness:
    """Whether this worker is ready: once it and all others follow a settled plan, and from then on.

    Not before the others: who is told that one worker is ready may meet another. Later plans change nothing about it,
    because what served goes on while they are prepared.
    """

    def __init__(self, follower: Follower, place: Place) -> None:
        self._follower = follower
        self._board = place.board
        self._slots = worker_slots(state.worker_count(place.settings))
        self._reached = False

    def __call__(self) -> bool:
        """True when it is ready."""
        if not self._reached and self._follower.plan.settled and self._follower.is_current:
            board, generation = self._board, self._follower.generation
            others = [slot for slot in self._slots if board.is_ready(slot)]
            self._reached = all(board.acknowledged(slot) >= generation for slot in others)
        return self._reached


def read_all(folder: RunFolder) -> Snapshot:
    """The counters of all processes."""
    return Snapshot.of_files(folder.all_counters())


def _forget_gauges(counters: CounterStore) -> None:
    """Nothing is in flight and no task runs, whatever the process before left in the gauges when it was killed."""
    for model, version in counters.snapshot().versions:
        found = counters.of(model, version)
        found.gauge(0, *found.cost_ns)
    counters.cells[counters.cell("tasks")] = 0


async def _follow(place: Place, follower: Follower, server: Server) -> None:
    """Keep to the plan; accept connections once it is followed for the first time.

    Before the first plan of a server there is nothing to follow: it is alive, and says that it is starting.
    """
    pid = os.getpid()
    count = state.worker_count(place.settings)
    workers = [slot for slot in worker_slots(count) if slot != place.slot]
    board = place.board

    def fewest() -> int | None:
        return board.fewest_connections(workers, time.monotonic_ns() - SILENT_NS)

    serving, bell = False, Bell()
    while not server.should_exit:
        changed = follower.step(board.generation, time.monotonic())
        acceptor = None if serving or not follower.is_current else server.acceptor
        if acceptor is not None and not is_better_elsewhere(follower.missing, place, count):
            # From here on it serves, also while it loads what a later plan adds.
            serving = changed = True
            # What was made until now stays: the garbage collector need not look at it again and again.
            gc.collect()
            gc.freeze()
            acceptor.share(fewest, lambda count: board.set_connections(place.slot, count))
            acceptor.start()
        if changed:
            plans.write(place.folder.status(place.slot), follower.status(pid))
            board.acknowledge(place.slot, follower.generation, ready=serving)
        await bell.wait(FOLLOW_S if follower.is_working or not serving else to_tick())


def is_better_elsewhere(missing: Mapping[str, Failure], place: Place, count: int) -> bool:
    """Whether clients should not come to this worker yet: it lacks versions that others, of `count`, answer with.

    After some tries it serves without them, because the others may be short of help; but it does not take the place of
    a predecessor that has them and still serves.
    """
    if not missing:
        return False
    board, predecessor = place.board, successor_slot(place.slot, count)
    others = [slot for slot in worker_slots(count) if slot != place.slot and board.is_ready(slot)]
    having = {
        slot: tries
        for slot, status in place.folder.statuses(board, others).items()
        if (tries := [failure.tries for key, failure in missing.items() if key in status.held])
    }
    return predecessor in having or any(min(tries) < PATIENT_TRIES for tries in having.values())


async def _beat(place: Place, server: Server, guard: MemoryGuard, counters: CounterStore) -> None:
    """Show signs of life from inside the loop."""
    tasks = counters.cell("tasks")
    while True:
        counters.cells[tasks] = len(asyncio.all_tasks())
        server.tick(time.monotonic())
        guard.check()
        name = stuck(server.gateway.pipeline, time.monotonic_ns())
        if name and not place.board.is_worn(place.slot):
            log.error("a run does not end", extra={"event": "run-stuck", "version": name})
            place.board.wear(place.slot)
        place.board.beat(place.slot, time.monotonic_ns(), server.connections())
        await asyncio.sleep(to_tick())
