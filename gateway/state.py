"""Gateway: the parts of a running server, put together once and frozen."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from starlette.requests import Request

from gateway import host
from gateway.inference.admission import Quotas
from gateway.inference.pipeline import Pipeline
from gateway.models.loader import QuarantineLoader
from gateway.models.manager import Manager
from gateway.models.repository import Repository
from gateway.models.source import Source
from gateway.models.table import ServingTable
from gateway.models.wishes import WishBook
from gateway.oip.limits import Limits
from gateway.settings import Settings
from gateway.telemetry import metrics

if TYPE_CHECKING:
    from gateway.http.fast import Head

access = logging.getLogger("headgate.access")


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
    """Everything that endpoints need. `draining` turns true once, when the server is told to stop."""

    settings: Settings
    table: ServingTable
    repository: Repository
    pipeline: Pipeline
    counters: metrics.Counters
    registry: CollectorRegistry
    lifecycle: Executor
    clock: CoarseClock
    connection_limits: ConnectionLimits
    draining: bool = False
    heads: dict[bytes, Head] = field(default_factory=dict)
    default_headers: list[tuple[bytes, bytes]] | None = None
    joined_headers: bytes = b""

    def log_access(self, route: str, status: int, arrived_ns: int, request_id: str) -> None:
        """One line of the access log for a reply of the fast door."""
        ms = round((time.monotonic_ns() - arrived_ns) / 1e6, 3)
        facts = {"request_id": request_id, "method": "POST", "route": route, "status": status, "ms": ms}
        access.info("request", extra={"event": "request", **facts})

    def close(self) -> None:
        """Give the threads back; work that did not begin is dropped."""
        self.lifecycle.shutdown(wait=False, cancel_futures=True)
        self.pipeline.close()


def assemble(settings: Settings) -> Gateway:
    """Put a gateway together from its settings; nothing is read or started yet."""
    cores = host.cores()
    counters = metrics.Counters()
    table = ServingTable()
    lifecycle = ThreadPoolExecutor(2, thread_name_prefix="lifecycle")
    loader = QuarantineLoader(
        timeout_s=settings.quarantine_timeout_s,
        memory_bytes=settings.quarantine_memory_bytes,
        max_model_bytes=settings.max_model_bytes,
        intra_op_threads=host.intra_op_threads(cores.count, 1, 1, settings.intra_op_threads),
        providers=settings.providers,
        require_manifest=settings.require_manifest,
    )
    manager = Manager(
        Source(settings.models, settings.quiet_s),
        loader,
        table,
        WishBook(settings.data / "wishes.json"),
        lifecycle,
        counters.of,
        settings.poll_s,
    )
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
    pipeline = Pipeline(table, counters, limits, quotas, settings.default_deadline_s, settings.max_deadline_s)
    registry = metrics.registry(counters, lambda: table.models)
    connection_limits = ConnectionLimits(
        settings.header_timeout_s,
        settings.body_timeout_s,
        settings.idle_timeout_s,
        settings.write_timeout_s,
        settings.max_header_bytes,
        settings.max_headers,
        settings.max_url_bytes,
        settings.max_chunks,
    )
    return Gateway(
        settings,
        table,
        Repository(manager),
        pipeline,
        counters,
        registry,
        lifecycle,
        CoarseClock(),
        connection_limits,
    )


def gateway_of(request: Request) -> Gateway:
    """The gateway that answers a request."""
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway
