"""Manager: owns the state of every version and moves it, one step at a time.

An incarnation of a version only goes forward: tried, loaded, ready, draining, gone; or failed. A version whose files
change gets a second incarnation, and the first one serves until the second is ready. `step` never blocks: slow work
is given to an executor and collected by a later step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import HeadgateError, LoadRejected, LoadUnavailable
from gateway.models import policy
from gateway.models.config import ModelConfig
from gateway.models.loader import Loader
from gateway.models.quarantine import Report
from gateway.models.servable import Servable
from gateway.models.source import ModelFolder, Source, VersionFiles
from gateway.models.table import ModelTable, ServingTable, VersionStatus
from gateway.models.wishes import WishBook
from gateway.telemetry.counters import VersionCounters

log = logging.getLogger("headgate.models")

RETRY_S = (5.0, 15.0, 60.0, 300.0)
"""Pauses before a version that lacked resources is tried again; the last one repeats."""

Identity = tuple[Any, ...]


@dataclass(slots=True)
class Attempt:
    """A version on its way up: `job` is the running trial, then the running load."""

    identity: Identity
    files: VersionFiles
    config: ModelConfig
    job: Future[Any]
    report: Report | None = None


@dataclass(slots=True)
class Failure:
    """Why an incarnation did not come up; tried again at `retry_at`, or (None) when its files change."""

    identity: Identity
    error: HeadgateError
    retry_at: float | None
    count: int


@dataclass(slots=True)
class Record:
    """Everything known of one version."""

    version: int
    files: VersionFiles | None = None
    servable: Servable | None = None
    served: Identity = ()
    attempt: Attempt | None = None
    failure: Failure | None = None
    draining: list[Servable] = field(default_factory=list)


@dataclass(slots=True)
class Entry:
    """Everything known of one model. `config` is the last one that could be read."""

    name: str
    config: ModelConfig | None = None
    error: str = ""
    records: dict[int, Record] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)

    def identity(self, files: VersionFiles) -> Identity:
        """What an incarnation is made of: when it changes, the version is loaded anew."""
        config = self.config
        if config is None:
            return (files.fingerprint,)
        return (
            files.fingerprint,
            config.session,
            config.batching,
            config.outputs,
            config.nonfinite_inputs,
            config.journal,
        )


class Manager:
    """Runs the lifecycle. Not thread-safe: `step` and everything else belong to one thread, that of the loop.

    Trials and loads run in `executor`; looks at the folder in `scanner` (None: a thread of their own), because
    versions that take their time must not keep the others from being seen. `is_informed` turns true once: when the
    folder was read, or what another process served was taken over. Before, nobody can say which models there are.
    """

    def __init__(
        self,
        source: Source,
        loader: Loader,
        table: ServingTable,
        wishes: WishBook,
        executor: Executor,
        counters: Callable[[str, int], VersionCounters],
        poll_s: float = 1.0,
        scanner: Executor | None = None,
    ) -> None:
        self.table = table
        self.wishes = wishes
        self.entries: dict[str, Entry] = {}
        self.is_informed = False
        self.scans = 0
        self.source_error = ""
        self._source = source
        self._loader = loader
        self._executor = executor
        self._scanner = scanner or ThreadPoolExecutor(1, thread_name_prefix="scan")
        self._counters = counters
        self._poll_s = poll_s
        self._scan: Future[dict[str, ModelFolder]] | None = None
        self._next_scan = 0.0

    def adopt(
        self, name: str, config: ModelConfig, aliases: Mapping[str, int], loaded: Mapping[VersionFiles, Servable]
    ) -> None:
        """Take over a model that serves already, as another process left it; nothing is loaded anew."""
        self.is_informed = True
        entry = self.entries.setdefault(name, Entry(name, config, aliases=dict(aliases)))
        for files, servable in loaded.items():
            record = Record(files.version, files=files, servable=servable, served=entry.identity(files))
            entry.records[files.version] = record

    @property
    def is_working(self) -> bool:
        """True while something is under way that a step could take further."""
        records = [record for entry in self.entries.values() for record in entry.records.values()]
        return self._scan is not None or any(record.attempt or record.draining for record in records)

    def scan_soon(self) -> int:
        """Look at the source at the next step; returns the number that `scans` has when that look is done."""
        self._next_scan = 0.0
        return self.scans + (2 if self._scan is not None else 1)

    def step(self, now: float) -> None:
        """Do what can be done at `now` (monotonic seconds) without waiting, and publish the result."""
        self._look(now)
        for entry in self.entries.values():
            for record in entry.records.values():
                self._collect(entry, record, now)
            self._act(entry, now)
            self._move_aliases(entry)
        self._publish()
        if self._release():
            self._publish()

    def close(self) -> None:
        """Stop the trials that run, so that a server that ends need not wait for them."""
        self._loader.close()
        self._scanner.shutdown(wait=False, cancel_futures=True)

    # -- the source

    def _look(self, now: float) -> None:
        if self._scan is not None and self._scan.done():
            scan, self._scan = self._scan, None
            self.scans += 1
            try:
                self._observe(scan.result())
                self.source_error = ""
            except OSError as error:
                # Nothing is known of the models, so nothing changes.
                reason = f"the model folder cannot be read ({error.strerror})"
                if reason != self.source_error:
                    log.error("source unavailable", extra={"event": "source-unavailable", "reason": reason})
                self.source_error = reason
        if self._scan is None and now >= self._next_scan:
            self._next_scan = now + self._poll_s
            self._scan = self._scanner.submit(self._source.scan)

    def _observe(self, folders: dict[str, ModelFolder]) -> None:
        self.is_informed = True
        for name in folders.keys() - self.entries.keys():
            self.entries[name] = Entry(name)
        for name, entry in self.entries.items():
            folder = folders.get(name) or ModelFolder(name, entry.config)
            if folder.config is not None:
                entry.config = folder.config
            if folder.error and folder.error != entry.error:
                log.error("model refused", extra={"event": "model-refused", "model": name, "reason": folder.error})
            entry.error = folder.error
            if not folder.readable:
                continue
            for version in folder.versions.keys() - entry.records.keys():
                entry.records[version] = Record(version)
            for version, record in entry.records.items():
                record.files = folder.versions.get(version)

    # -- one version

    def _collect(self, entry: Entry, record: Record, now: float) -> None:
        """Take the result of a finished trial or load."""
        attempt = record.attempt
        if attempt is None or not attempt.job.done():
            return
        try:
            result = attempt.job.result()
        except HeadgateError as error:
            self._fail(entry, record, attempt, error, now)
            return
        except MemoryError:
            self._fail(entry, record, attempt, LoadUnavailable("not enough memory to load it", retry_after_s=30), now)
            return
        except Exception:
            log.exception("load failed", extra={"event": "version-failed", "model": entry.name})
            self._fail(entry, record, attempt, LoadRejected("an internal error stopped the load; see the log"), now)
            return
        if isinstance(result, Report):
            attempt.report = result
            if record.version not in self.wanted(entry, self.views(entry, now)):
                # Removed or unloaded meanwhile: there is no need to load what would be withdrawn at once.
                record.attempt = None
                return
            counters = self._counters(entry.name, record.version)
            job = (entry.name, attempt.files, attempt.config, result, counters)
            attempt.job = self._executor.submit(self._loader.load, *job)
            return
        record.attempt = None
        record.failure = None
        _withdraw(record)
        record.servable, record.served = result, attempt.identity
        report = result.report
        facts = {"verified": report.verified, "sha256": report.sha256, "notes": list(report.notes)}
        log.info("version ready", extra={"event": "version-ready", **_who(entry, record), **facts})

    def _fail(self, entry: Entry, record: Record, attempt: Attempt, error: HeadgateError, now: float) -> None:
        again = record.failure is not None and record.failure.identity == attempt.identity
        count = record.failure.count + 1 if again and record.failure is not None else 1
        retry_at = now + RETRY_S[min(count, len(RETRY_S)) - 1] if isinstance(error, LoadUnavailable) else None
        record.attempt = None
        record.failure = Failure(attempt.identity, error, retry_at, count)
        log.error("version failed", extra={"event": "version-failed", **_who(entry, record), "reason": error.message})

    # -- one model

    def views(self, entry: Entry, now: float) -> list[policy.VersionView]:
        """The model's versions as the policy sees them."""
        return [self._view(entry, record, now) for record in entry.records.values()]

    def _view(self, entry: Entry, record: Record, now: float) -> policy.VersionView:
        files, serving, busy = record.files, record.servable is not None, record.attempt is not None
        if files is None:
            return policy.VersionView(record.version, present=False, serving=serving, busy=busy)
        identity = entry.identity(files)
        failure = record.failure
        failed = failure is not None and failure.identity == identity
        if failed and failure is not None and failure.retry_at is not None and now >= failure.retry_at:
            failed = False
        loadable = files.complete and entry.config is not None and not entry.error
        return policy.VersionView(
            record.version,
            present=serving or busy or files.complete,
            serving=serving,
            startable=loadable and not busy and not failed and not (serving and record.served == identity),
            busy=busy,
            failed=failed,
        )

    def wanted(self, entry: Entry, views: Iterable[policy.VersionView]) -> frozenset[int]:
        """The versions that should serve."""
        if entry.config is None:
            return frozenset(view.version for view in views if view.serving and view.present)
        wishes = self.wishes.get(entry.name)
        targets = set(self._desired_aliases(entry).values()) | set(entry.aliases.values())
        return policy.aspired(views, entry.config.versions, targets, wishes.policy())

    def _act(self, entry: Entry, now: float) -> None:
        while True:
            views = self.views(entry, now)
            action = policy.next_action(views, self.wanted(entry, views))
            if action is None:
                return
            record = entry.records[action.version]
            if action.verb == "load" and record.files is not None and entry.config is not None:
                identity = entry.identity(record.files)
                job = self._executor.submit(self._loader.check, entry.name, record.files, entry.config)
                record.attempt = Attempt(identity, record.files, entry.config, job)
                log.info("version found", extra={"event": "version-found", **_who(entry, record)})
            else:
                _withdraw(record)
                log.info("version draining", extra={"event": "version-draining", **_who(entry, record)})

    def _desired_aliases(self, entry: Entry) -> dict[str, int]:
        declared = entry.config.aliases if entry.config is not None else {}
        return self.wishes.get(entry.name).effective_aliases(declared)

    def _move_aliases(self, entry: Entry) -> None:
        """An alias moves when its new target is ready; until then it stays on a target that still serves."""
        desired = self._desired_aliases(entry)
        for alias, version in desired.items():
            current = entry.records.get(entry.aliases.get(alias, 0))
            target = entry.records.get(version)
            if (target is not None and target.servable is not None) or current is None or current.servable is None:
                entry.aliases[alias] = version
        for alias in entry.aliases.keys() - desired.keys():
            del entry.aliases[alias]

    def _forget(self) -> None:
        """Drop versions and models of which nothing is left, neither files nor requests."""
        for entry in self.entries.values():
            gone = [version for version, record in entry.records.items() if _empty(record)]
            for version in gone:
                del entry.records[version]
                log.info("version gone", extra={"event": "version-gone", "model": entry.name, "version": version})
        for name in [name for name, entry in self.entries.items() if not entry.records and not entry.error]:
            del self.entries[name]

    def _release(self) -> bool:
        """Let go of what drained; True where anything did.

        Only after publishing: no new request can take hold of it any more.
        """
        released = False
        for entry in self.entries.values():
            for record in entry.records.values():
                draining = [servable for servable in record.draining if not _gone(servable)]
                released |= len(draining) < len(record.draining)
                record.draining = draining
        return released

    # -- what others see

    def _publish(self) -> None:
        self._forget()
        if self.is_informed:  # else an empty table would say that there is no model
            self.table.publish({name: self._table(entry) for name, entry in self.entries.items()})

    def _table(self, entry: Entry) -> ModelTable:
        ready = {version: r.servable for version, r in entry.records.items() if r.servable is not None}
        statuses = tuple(
            VersionStatus(version, *self._state(entry, entry.records[version])) for version in sorted(entry.records)
        )
        return ModelTable(entry.name, ready, dict(entry.aliases), statuses, entry.error)

    def _state(self, entry: Entry, record: Record) -> tuple[str, str]:
        """State and reason in the words of the repository index."""
        failure = record.failure
        files = record.files
        current = failure is not None and files is not None and failure.identity == entry.identity(files)
        because = failure.error.message if failure is not None and current else ""
        if record.servable is not None:
            return "READY", f"its files changed, but the new ones failed to load: {because}" if because else ""
        if record.attempt is not None:
            return "LOADING", "in quarantine" if record.attempt.report is None else "passed quarantine"
        if record.draining:
            return "UNLOADING", "its last requests are being answered"
        if because:
            return "UNAVAILABLE", because
        if entry.error:
            return "UNAVAILABLE", entry.error
        if files is not None and files.waiting:
            return "UNAVAILABLE", f"waiting for its files: {files.waiting}"
        wishes = self.wishes.get(entry.name)
        asked = record.version in wishes.held or wishes.all_held
        return "UNAVAILABLE", "unloaded by request" if asked else "not wanted by the version policy"


def _who(entry: Entry, record: Record) -> dict[str, Any]:
    return {"model": entry.name, "version": record.version}


def _empty(record: Record) -> bool:
    return record.files is None and record.servable is None and record.attempt is None and not record.draining


def _withdraw(record: Record) -> None:
    """What serves of a version, if anything, drains from now on."""
    if record.servable is not None:
        record.servable.withdraw()
        record.draining.append(record.servable)
        record.servable, record.served = None, ()


def _gone(servable: Servable) -> bool:
    """A drained servable is forgotten; the session is freed with its last reference."""
    if servable.is_held:
        return False
    who = {"model": servable.model, "version": servable.version}
    log.info("version released", extra={"event": "version-released", **who})
    return True
