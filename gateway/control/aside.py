"""Aside: what the control process does beside the lifecycle: journal, ledger, monitors. Nothing waits for it."""

from __future__ import annotations

import time
from functools import partial

from prometheus_client.registry import Collector
from starlette.routing import Route

from gateway import state
from gateway.control.chores import Chore, Chores, recover_journal
from gateway.control.monitoring import Monitoring
from gateway.feedback.declarations import Declarations
from gateway.http.reviews import Desk
from gateway.journal.keeper import Keeper
from gateway.journal.scribe import Scribe
from gateway.ledger import dialect
from gateway.ledger.metrics import LedgerCollector
from gateway.ledger.reading import Ledger as Book
from gateway.ledger.reading import LedgerUnavailable
from gateway.ledger.service import Service as Ledger
from gateway.settings import Settings
from gateway.telemetry.store import CounterStore
from monitors.metrics import Collector as MonitorCollector

RECOVER_S = 1.0
"""How often it is looked whether a worker died and left segments open."""

KEEP_S = 10.0
"""How often sealed segments are archived, and what is too old or too much removed."""


class Aside:
    """Started and ended with the control process."""

    def __init__(self, settings: Settings, counters: CounterStore) -> None:
        self._data = settings.data
        journal = settings.data / "journal"
        count = partial(state.count_journal, counters)
        self.monitoring = Monitoring(settings) if settings.monitors else None
        self.ledger = Ledger(dialect.location(settings.data), settings.data, Declarations(settings.models))
        self._book = Book(dialect.location(settings.data))
        scribe = Scribe(lambda: self._chores.is_stopping())
        keeper = Keeper(settings, self._is_read, count=count, scribe=scribe)
        self._chores = Chores(
            Chore("recover", RECOVER_S, lambda: recover_journal(journal, count, keeper.told)),
            Chore("keep", KEEP_S, lambda: keeper.step(self._chores.is_stopping)),
        )

    def _is_read(self, prefix: str) -> bool:
        """Whether the monitors and the ledger are through with a segment."""
        try:
            counted = self._book.has_counted(prefix)
        except LedgerUnavailable:
            return False
        return counted and (self.monitoring is None or self.monitoring.service.has_read(prefix))

    def start(self) -> None:
        """Begin; returns at once."""
        self._chores.start()
        self.ledger.start()
        if self.monitoring is not None:
            self.monitoring.start()

    def stop(self) -> None:
        """End after what is being done."""
        self._chores.stop()
        self.ledger.stop()
        if self.monitoring is not None:
            self.monitoring.stop()

    def routes(self) -> list[Route]:
        """What the admin port answers beside what every port does."""
        watched = [] if self.monitoring is None else self.monitoring.routes()
        return [*Desk(self.ledger).routes(), *watched]

    def collectors(self) -> list[Collector]:
        """What is scraped beside the counters."""
        ledger = LedgerCollector(self._book, self._data, time.time_ns, time.monotonic, lambda: self.ledger.trouble)
        if self.monitoring is None:
            return [ledger]
        return [ledger, MonitorCollector(self.monitoring.service, self.monitoring.webhook)]
