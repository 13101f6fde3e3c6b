"""Gateway: the parts of a running server, put together once and frozen."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

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
    draining: bool = False

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
    return Gateway(settings, table, Repository(manager), pipeline, counters, registry, lifecycle)


def gateway_of(request: Request) -> Gateway:
    """The gateway that answers a request."""
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway
