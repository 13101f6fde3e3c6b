"""Follower: makes a worker's table what the plan says, and reports back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import HeadgateError, LoadRejected
from gateway.models.loader import Loader
from gateway.models.servable import Servable
from gateway.models.table import ModelTable, ServingTable, VersionStatus
from gateway.routing import plan as plans
from gateway.routing.plan import Plan, PlannedVersion
from gateway.telemetry.counters import VersionCounters
from gateway.workers.board import WorkerStatus
from gateway.workers.notes import Notes, VersionKey
from gateway.workers.watched import WatchedSession

log = logging.getLogger("headgate.worker")

RETRY_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Pauses before a version that answers elsewhere is tried again here; the last one repeats."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an incarnation could not be loaded, how often that was tried, and when it is tried again."""

    reason: str
    tries: int
    retry_at: float


class Follower:
    """Belongs to the loop's thread. `step` never blocks: sessions are loaded by the executor, one after another.

    What fails while it is being prepared is the control process's to decide about. What should answer is tried again
    and again: its files may have been away for a moment, or memory short, when this process started.
    """

    def __init__(
        self,
        path: Path,
        loader: Loader,
        table: ServingTable,
        executor: Executor,
        counters: Callable[[str, int], VersionCounters],
        notes: Notes,
    ) -> None:
        self.plan = Plan()
        self.generation = 0
        self.failed: dict[str, Failure] = {}
        self._path = path
        self._loader = loader
        self._table = table
        self._executor = executor
        self._counters = counters
        self._notes = notes
        self._loaded: dict[str, Servable] = {}
        self._loading: dict[str, Future[Servable]] = {}
        self._draining: dict[str, Servable] = {}

    @property
    def is_current(self) -> bool:
        """True when everything in the plan is loaded or failed; also while there is no plan yet."""
        return self.generation == self.plan.generation

    @property
    def is_working(self) -> bool:
        """True while versions are being loaded, wait to be tried again, or finish what they have taken."""
        return bool(self._loading or self._draining or self.failed) or not self.is_current

    @property
    def missing(self) -> dict[str, Failure]:
        """What should answer and does not, because it could not be loaded here."""
        wanted = self._wanted()
        return {key: failure for key, failure in self.failed.items() if wanted[key][1].serves}

    def step(self, generation: int, now: float) -> bool:
        """Follow the plan; `generation` is that of the plan in force. True where there is something to report."""
        changed = False
        if generation != self.plan.generation:
            self.plan = plans.read(self._path)
            self._start()
            changed = True
        for incarnation in [key for key, future in self._loading.items() if future.done()]:
            self._collect(incarnation, self._loading.pop(incarnation), now)
            changed = True
        if self.failed:
            self._retry(now)
        if changed:
            self._watch()
            self._publish()
        for incarnation in [key for key, servable in self._draining.items() if not servable.in_flight]:
            _release(self._draining.pop(incarnation))
            changed = True
        if not self._loading and self.generation != self.plan.generation:
            self.generation = self.plan.generation
            changed = True
        return changed

    def status(self, pid: int) -> WorkerStatus:
        """What is to be reported."""
        held = {key: servable.in_flight for key, servable in (*self._loaded.items(), *self._draining.items())}
        return WorkerStatus(pid, self.generation, held, {key: failure.reason for key, failure in self.failed.items()})

    def _wanted(self) -> dict[str, tuple[str, PlannedVersion]]:
        return {
            version.incarnation: (name, version)
            for name, model in self.plan.models.items()
            for version in model.versions
        }

    def _start(self) -> None:
        wanted = self._wanted()
        for incarnation, (name, version) in wanted.items():
            if incarnation in self._loaded or incarnation in self._loading or incarnation in self.failed:
                continue
            self._loading[incarnation] = self._executor.submit(self._load, name, version)
        for incarnation in self._loaded.keys() - wanted.keys():
            self._draining[incarnation] = self._loaded.pop(incarnation)
        for incarnation in self.failed.keys() - wanted.keys():
            del self.failed[incarnation]
        for incarnation in self._loading.keys() - wanted.keys():
            future = self._loading.pop(incarnation)
            if not future.cancel():
                future.add_done_callback(_discard)

    def _retry(self, now: float) -> None:
        wanted = self._wanted()
        for incarnation, failure in self.missing.items():
            if now >= failure.retry_at and incarnation not in self._loading:
                self._loading[incarnation] = self._executor.submit(self._load, *wanted[incarnation])

    def _load(self, name: str, version: PlannedVersion) -> Servable:
        """Runs in the executor."""
        mark = self._notes.claim(VersionKey(name, version.version, version.fingerprint))
        mark.loading()
        try:
            counters = self._counters(name, version.version)
            servable = self._loader.load(name, version.files(), version.config, version.report, counters)
        except BaseException:
            mark.release()
            raise
        mark.idle()
        if servable.session is not None:
            servable.session = WatchedSession(servable.session, mark, batched=servable.contract.batched)
        return servable

    def _watch(self) -> None:
        """Look more closely at versions that have crashed workers."""
        wanted = self._wanted()
        for incarnation, servable in self._loaded.items():
            if isinstance(servable.session, WatchedSession):
                version = wanted[incarnation][1]
                servable.session.suspect, servable.session.refused = version.suspect, frozenset(version.refused)

    def _collect(self, incarnation: str, future: Future[Servable], now: float) -> None:
        name, version = self._wanted()[incarnation]
        who = {"model": name, "version": version.version}
        try:
            self._loaded[incarnation] = future.result()
        except HeadgateError as error:
            reason = error.message
        except MemoryError:
            reason = "not enough memory to load it"
        except Exception:
            log.exception("load failed", extra={"event": "load-failed", **who})
            reason = LoadRejected("an internal error stopped the load").message
        else:
            if self.failed.pop(incarnation, None) is not None:
                log.info("loaded after all", extra={"event": "loaded-after-all", **who})
            return
        tries = self.failed[incarnation].tries + 1 if incarnation in self.failed else 1
        self.failed[incarnation] = Failure(reason, tries, now + RETRY_S[min(tries, len(RETRY_S)) - 1])
        log.error("load failed", extra={"event": "load-failed", **who, "reason": reason, "tries": tries})

    def _publish(self) -> None:
        models = {}
        for name, model in self.plan.models.items():
            ready = {
                version.version: self._loaded[version.incarnation]
                for version in model.versions
                if version.serves and version.incarnation in self._loaded
            }
            missing = {
                version.version: self.failed[version.incarnation].reason
                for version in model.versions
                if version.serves and version.incarnation in self.failed
            }
            statuses = tuple(
                VersionStatus(each.version, "UNAVAILABLE", f"this worker could not load it: {missing[each.version]}")
                if each.version in missing
                else VersionStatus(each.version, each.state, each.reason)
                for each in model.statuses
            )
            models[name] = ModelTable(name, ready, model.aliases, statuses, model.error)
        self._table.publish(models)


def _release(servable: Servable) -> None:
    """Its row in the notes is free for another version."""
    if isinstance(servable.session, WatchedSession):
        servable.session.release()


def _discard(future: Future[Servable]) -> None:
    """What was loaded is not wanted any more."""
    if future.exception() is None:
        _release(future.result())
