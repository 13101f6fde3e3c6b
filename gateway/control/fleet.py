"""Fleet: the workers as the control process sees them, and the plan it writes for them.

To the manager the fleet is what one process is to itself: a loader that loads a version everywhere, and a table whose
publishing lets it answer everywhere.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import msgspec
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.control.blame import Blame
from gateway.errors import LoadRejected, LoadUnavailable
from gateway.models.config import ModelConfig
from gateway.models.loader import QuarantineLoader
from gateway.models.manifest import Lineage, read_manifest
from gateway.models.quarantine import Report
from gateway.models.servable import Servable
from gateway.models.source import VersionFiles
from gateway.models.table import ModelTable, ServingTable
from gateway.routing import plan as plans
from gateway.routing.plan import Plan, PlannedModel, PlannedStatus, PlannedVersion
from gateway.telemetry.counters import VersionCounters
from gateway.workers import bell
from gateway.workers.board import Board, RunFolder, WorkerStatus, worker_slots
from gateway.workers.notes import VersionKey

POLL_S = 0.02


class Planned(Servable):
    """A version that the workers have loaded. It is held for as long as a worker holds it."""

    def __init__(self, model: str, planned: PlannedVersion, fleet: Fleet, counters: VersionCounters) -> None:
        super().__init__(model, planned.version, None, planned.config, planned.report, planned.lineage, counters)
        self.planned = planned
        self._fleet = fleet

    @property
    def key(self) -> VersionKey:
        """What workers call it when they note what they do."""
        return VersionKey(self.model, self.planned.version, self.planned.fingerprint)

    def withdraw(self) -> None:
        """See Servable. Said too where it never served: it must not stay in the plan as one that is being prepared."""
        self._fleet.forget(self.planned.incarnation)

    @property
    def is_held(self) -> bool:
        """True until every worker follows a plan without it and its last call is done."""
        return self._fleet.holds(self.planned.incarnation)


class Fleet:
    """The plan and the reports. The load thread and the loop's thread both come here, so a lock guards the plan."""

    def __init__(self, folder: RunFolder, board: Board, workers: int, load_timeout_s: float, blame: Blame) -> None:
        self.blame = blame
        self._folder = folder
        self._board = board
        self._workers = workers
        self._slots = worker_slots(workers)
        self._load_timeout_s = load_timeout_s
        self._lock = threading.Lock()
        self._closed = False
        self.plan = plans.read(folder.plan)
        self._preparing: dict[str, tuple[str, PlannedVersion]] = {}
        self._served: dict[str, PlannedModel] = dict(self.plan.models)

    # -- the plan

    def serve(self, models: Mapping[str, ModelTable], *, settled: bool) -> None:
        """Let these versions answer. A plan that changes nothing is not written."""
        served = {name: _planned(model) for name, model in models.items()}
        with self._lock:
            self._served = served
            self._write(settled)

    def prepare(self, model: str, planned: PlannedVersion) -> None:
        """Have every worker load a version without letting it answer. Blocks until all have.

        Raises LoadRejected where a worker could not load it, LoadUnavailable after the load timeout or where a worker
        crashed meanwhile.
        """
        key = VersionKey(model, planned.version, planned.fingerprint)
        deaths = len(self.blame.loads(key))
        with self._lock:
            self._preparing[planned.incarnation] = (model, planned)
            self._write(self.plan.settled)
            generation = self.plan.generation
        deadline = time.monotonic() + self._load_timeout_s
        try:
            while not self._all_loaded(planned.incarnation, generation):
                if self._closed:
                    raise LoadUnavailable("the server is shutting down")
                self.raise_if_blocked(key)
                if len(self.blame.loads(key)) > deaths:
                    raise LoadUnavailable("a worker crashed while loading it")
                if time.monotonic() > deadline:
                    raise LoadUnavailable(f"the workers had not loaded it after {self._load_timeout_s:g} s")
                time.sleep(POLL_S)
        except Exception:
            self.forget(planned.incarnation)
            raise

    def suspect(self, servables: Iterable[Planned], now: float) -> bool:
        """Say in the plan which versions have crashed workers, and by which rows. True where that has changed."""
        changed = False
        for each in servables:
            suspect, refused = self.blame.is_suspect(each.key, now), self.blame.refused(each.key)
            if (suspect, refused) != (each.planned.suspect, each.planned.refused):
                each.planned = msgspec.structs.replace(each.planned, suspect=suspect, refused=refused)
                changed = True
        return changed

    def raise_if_blocked(self, key: VersionKey) -> None:
        """Raises LoadRejected for a version that has crashed too many workers."""
        self.blame.look()
        if reason := self.blame.reason(key):
            raise LoadRejected(reason)

    def close(self) -> None:
        """Wait for no worker any more: a load that waited would keep the process from ending."""
        self._closed = True

    def forget(self, incarnation: str) -> None:
        """A prepared version is served from now on, or is not wanted any more."""
        with self._lock:
            self._preparing.pop(incarnation, None)

    def _write(self, settled: bool) -> None:
        models = dict(self._served)
        for name, planned in self._preparing.values():
            model = models.get(name) or PlannedModel([], {}, [])
            if all(each.incarnation != planned.incarnation for each in model.versions):
                models[name] = msgspec.structs.replace(model, versions=[*model.versions, planned])
        candidate = Plan(models, settled, self.plan.generation)
        if candidate == self.plan and self.plan.generation:
            return
        self.plan = msgspec.structs.replace(candidate, generation=self.plan.generation + 1)
        plans.write(self._folder.plan, self.plan)
        self._board.generation = self.plan.generation
        for slot in self._slots:
            bell.ring(self._board.pid(slot))

    # -- the workers

    def _statuses(self) -> dict[int, WorkerStatus]:
        return self._folder.statuses(self._board, self._slots)

    def _all_loaded(self, incarnation: str, generation: int) -> bool:
        """True when every worker has it. One that is just being replaced reads the plan before it serves.

        One that retires does not follow the plan any more; its successor does.
        """
        statuses = {slot: status for slot, status in self._statuses().items() if status.generation >= generation}
        for status in statuses.values():
            if incarnation in status.failed:
                raise LoadRejected(f"a worker could not load it: {status.failed[incarnation]}")
        needed = [slot for slot in self._slots if self._board.pid(slot) and not self._board.is_retiring(slot)]
        return len(needed) >= self._workers and all(
            slot in statuses and incarnation in statuses[slot].held for slot in needed
        )

    @property
    def is_followed(self) -> bool:
        """True when every worker that serves follows the present plan."""
        board, generation = self._board, self.plan.generation
        return all(board.acknowledged(slot) >= generation for slot in self._slots if board.is_ready(slot))

    def lacking(self) -> dict[tuple[str, int], int]:
        """For each version that answers, the workers that could not load it, and try again."""
        failed = Counter(incarnation for status in self._statuses().values() for incarnation in status.failed)
        return {
            (name, version.version): failed[version.incarnation]
            for name, model in sorted(self.plan.models.items())
            for version in model.versions
            if version.serves
        }

    def holds(self, incarnation: str) -> bool:
        """True while a worker has it loaded, or may have it because it does not follow the present plan yet."""
        if any(each.incarnation == incarnation for model in self.plan.models.values() for each in model.versions):
            return True
        return any(incarnation in s.held or s.generation < self.plan.generation for s in self._statuses().values())


def _planned(model: ModelTable) -> PlannedModel:
    versions = [servable.planned for servable in model.ready.values() if isinstance(servable, Planned)]
    statuses = [PlannedStatus(each.version, each.state, each.reason) for each in model.statuses]
    return PlannedModel(versions, dict(model.aliases), statuses, model.error)


class FleetCollector(Collector):
    """What the fleet lacks, as a metric."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client's Collector."""
        missing = GaugeMetricFamily(
            "headgate_model_missing_workers",
            "Workers that could not load a version that answers, and try again.",
            labels=["model", "version"],
        )
        for (model, version), workers in self._fleet.lacking().items():
            missing.add_metric([model, str(version)], workers)
        yield missing


class FleetTable(ServingTable):
    """The control process's table: what is published here is what all workers serve."""

    def __init__(self, fleet: Fleet, settled: Callable[[], bool]) -> None:
        super().__init__()
        self._fleet = fleet
        self._settled = settled

    @property
    def is_everywhere(self) -> bool:
        """See ServingTable."""
        return self._fleet.is_followed

    def publish(self, models: Mapping[str, ModelTable]) -> None:
        """See ServingTable."""
        super().publish(models)
        self._fleet.serve(models, settled=self._settled())
        for model in models.values():
            for servable in model.ready.values():
                if isinstance(servable, Planned):
                    self._fleet.forget(servable.planned.incarnation)


class FleetLoader:
    """Tries a version in quarantine here, then has every worker load it."""

    def __init__(self, quarantine: QuarantineLoader, fleet: Fleet) -> None:
        self._quarantine = quarantine
        self._fleet = fleet

    def check(self, model: str, files: VersionFiles, config: ModelConfig) -> Report:
        """See Loader. A version that has crashed too many workers is not even tried."""
        self._fleet.raise_if_blocked(VersionKey(model, files.version, files.fingerprint))
        return self._quarantine.check(model, files, config)

    def load(
        self, model: str, files: VersionFiles, config: ModelConfig, report: Report, counters: VersionCounters
    ) -> Servable:
        """See Loader."""
        lineage = read_manifest(files.folder, model, files.version).lineage if files.verified else Lineage()
        planned = PlannedVersion(
            incarnation=secrets.token_hex(8),
            version=files.version,
            folder=str(files.folder),
            fingerprint=files.fingerprint,
            verified=files.verified,
            config=config,
            report=report,
            lineage=lineage,
            serves=False,
        )
        self._fleet.prepare(model, planned)
        return Planned(model, msgspec.structs.replace(planned, serves=True), self._fleet, counters)

    def close(self) -> None:
        """See Loader."""
        self._quarantine.close()
        self._fleet.close()
