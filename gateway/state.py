"""Gateway: the parts that endpoints need, put together once and frozen; and the parts that processes share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry
from starlette.requests import Request

from gateway import host, structs
from gateway.feedback.service import Feedback, feedback_for
from gateway.inference.admission import Quotas
from gateway.inference.pipeline import Pipeline
from gateway.journal.journal import Journal, JournalSettings
from gateway.models.loader import QuarantineLoader
from gateway.models.source import Source, wanted_versions
from gateway.models.table import ServingTable
from gateway.oip.limits import Limits
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.telemetry.store import CounterStore, Snapshot

if TYPE_CHECKING:
    from gateway.http.head import Head

JOURNAL_COUNTS = ("dropped", "errors", "segments-recovered", "torn", "cut", "damaged")
"""What is counted of the journal beside its records."""

access = logging.getLogger("headgate.access")


class RepositoryAPI(Protocol):
    """What can be asked of the lifecycle; see models.repository.Repository."""

    async def load(self, name: str, version: int | None = None) -> None:
        """Load a model or one version of it."""
        ...

    async def reload(self, name: str, version: int | None = None) -> None:
        """Load it anew."""
        ...

    async def unload(self, name: str, version: int | None = None) -> None:
        """Unload it."""
        ...

    async def move_alias(self, name: str, alias: str, version: int | None) -> None:
        """Move an alias, or remove it."""
        ...


@dataclass(slots=True)
class CoarseClock:
    """Monotonic seconds that are read often and set a few times a second: `now` is at most one tick old."""

    now: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a connection may do: seconds to receive headers and body, to idle, to leave replies unread; and sizes."""

    header_s: float
    body_s: float
    idle_s: float
    write_stall_s: float
    max_header_bytes: int
    max_headers: int
    max_url_bytes: int
    max_chunks: int


@dataclass(slots=True)
class Gateway:
    """Everything that endpoints need. `settled` tells whether every wanted version is ready or has failed.

    `draining` turns true once, when the process is told to stop. `read_counters` sums those of all processes.
    """

    settings: Settings
    table: ServingTable
    repository: RepositoryAPI
    settled: Callable[[], bool]
    pipeline: Pipeline
    feedback: Feedback
    counters: CounterStore
    read_counters: Callable[[], Snapshot]
    registry: CollectorRegistry
    connection_limits: ConnectionLimits
    clock: CoarseClock = field(default_factory=CoarseClock)
    draining: bool = False
    heads: dict[bytes, Head] = field(default_factory=dict)
    default_headers: list[tuple[bytes, bytes]] | None = None
    joined_headers: bytes = b""

    def log_access(self, route: str, status: int, arrived_ns: int, request_id: str) -> None:
        """One line of the access log for a reply of the fast door."""
        ms = round((time.monotonic_ns() - arrived_ns) / 1e6, 3)
        facts = {"request_id": request_id, "method": "POST", "route": route, "status": status, "ms": ms}
        access.info("request", extra={"event": "request", **facts})


def assemble(
    settings: Settings,
    table: ServingTable,
    repository: RepositoryAPI,
    settled: Callable[[], bool],
    counters: CounterStore,
    read_counters: Callable[[], Snapshot],
    journal: Journal | None = None,
) -> Gateway:
    """Put a gateway together; nothing is read or started yet."""
    structs.prepare()
    limits = Limits(
        max_body_bytes=settings.max_body_bytes,
        max_tensors=settings.max_tensors,
        max_elements=settings.max_elements,
        max_rank=settings.max_rank,
        max_json_depth=settings.max_json_depth,
    )
    quotas = Quotas(
        settings.max_in_flight,
        settings.max_in_flight_per_model,
        settings.max_in_flight_per_client,
        settings.max_wait_s,
    )
    return Gateway(
        settings=settings,
        table=table,
        repository=repository,
        settled=settled,
        pipeline=Pipeline(
            table, counters, limits, quotas, settings.default_deadline_s, settings.max_deadline_s, journal
        ),
        feedback=feedback_for(settings, counters),
        counters=counters,
        read_counters=read_counters,
        registry=metrics.registry(read_counters, lambda: table.models),
        connection_limits=ConnectionLimits(
            settings.header_timeout_s,
            settings.body_timeout_s,
            settings.idle_timeout_s,
            settings.write_timeout_s,
            settings.max_header_bytes,
            settings.max_headers,
            settings.max_url_bytes,
            settings.max_chunks,
        ),
    )


def journal_for(settings: Settings, counters: CounterStore) -> Journal | None:
    """The journal of a process that answers requests; None where it is switched off. Raises OSError."""
    if not settings.journal:
        return None
    rules = JournalSettings(
        folder=settings.data / "journal",
        segment_bytes=settings.journal_segment_bytes,
        max_age_s=settings.journal_segment_age_s,
        flush=settings.journal_flush,
        required=settings.journal_required,
    )
    return Journal(rules, partial(count_journal, counters))


def count_journal(counters: CounterStore, what: str, number: int) -> None:
    """Count what happened to the journal; every name is there from the start."""
    for name in JOURNAL_COUNTS:
        counters.cell("journal", name)
    counters.cells[counters.cell("journal", what)] += number


def worker_count(settings: Settings) -> int:
    """Worker processes: the setting, or one for each usable core."""
    return settings.workers or max(1, int(host.cores().count))


def loader_for(settings: Settings) -> QuarantineLoader:
    """The loader of any process of this server; cores are divided over workers and sessions."""
    # What lies in the folder now: versions that come later get the same share.
    try:
        sessions = wanted_versions(Source(settings.models).scan())
    except OSError:
        sessions = 1
    threads = host.intra_op_threads(host.cores().count, sessions, worker_count(settings), settings.intra_op_threads)
    return QuarantineLoader(
        timeout_s=settings.quarantine_timeout_s,
        memory_bytes=settings.quarantine_memory_bytes,
        max_model_bytes=settings.max_model_bytes,
        intra_op_threads=threads,
        providers=settings.providers,
        require_manifest=settings.require_manifest,
    )


def gateway_of(request: Request) -> Gateway:
    """The gateway that answers a request."""
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway
