"""Servable: a loaded version, which stays loaded for as long as a request holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.models.config import ModelConfig
from gateway.models.manifest import Lineage
from gateway.models.quarantine import Report
from gateway.telemetry.counters import VersionCounters
from gateway.types import Contract

if TYPE_CHECKING:
    from gateway.models.session import Session


class Servable:
    """One incarnation of a version, loaded. `in_flight` counts the calls that hold it; only the loop changes it.

    The handle on it is the Call: it counts itself in when it is made, and the pipeline counts it out when it is done.
    `session` is None where other processes have it loaded and this one only speaks of it.
    """

    def __init__(
        self,
        model: str,
        version: int,
        session: Session | None,
        config: ModelConfig,
        report: Report,
        lineage: Lineage,
        counters: VersionCounters,
    ) -> None:
        self.model = model
        self.version = version
        self.session = session
        self.config = config
        self.report = report
        self.lineage = lineage
        self.counters = counters
        self.in_flight = 0
        self.labels = {name: rule.labels for name, rule in config.outputs.items() if rule.labels}

    def withdraw(self) -> None:
        """It is not wanted any more: no new request gets it, and it goes when nothing holds it."""

    @property
    def is_held(self) -> bool:
        """True while a request needs it."""
        return self.in_flight > 0

    @property
    def contract(self) -> Contract:
        """What it takes and gives."""
        return self.report.contract

    @property
    def max_batch_rows(self) -> int:
        """Rows that may run together; 0 where axis 0 is no batch axis."""
        return self.config.batching.max_rows if self.contract.batched else 0
