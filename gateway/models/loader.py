"""Loader: tries and loads one version. Cheap to make; `check` and `load` take seconds and run in a thread."""

from __future__ import annotations

from typing import Protocol

from gateway.errors import LoadRejected
from gateway.journal import keep
from gateway.models.config import ModelConfig
from gateway.models.manifest import MODEL, Lineage, read_file, read_manifest, sha256
from gateway.models.options import SessionOptions
from gateway.models.quarantine import Job, Quarantine, Report
from gateway.models.servable import Servable
from gateway.models.session import Session
from gateway.models.source import VersionFiles
from gateway.telemetry.counters import VersionCounters


class Loader(Protocol):
    """What the manager needs done. `check` and `load` raise LoadRejected or LoadUnavailable."""

    def check(self, model: str, files: VersionFiles, config: ModelConfig) -> Report:
        """Try the version where it can do no harm."""
        ...

    def load(
        self, model: str, files: VersionFiles, config: ModelConfig, report: Report, counters: VersionCounters
    ) -> Servable:
        """Load what was tried."""
        ...

    def close(self) -> None:
        """End the checks that run, and let no further one begin. Called once, from another thread."""
        ...


class QuarantineLoader:
    """Tries a version in quarantine, then loads the very bytes that passed into this process."""

    def __init__(
        self,
        *,
        timeout_s: float,
        memory_bytes: int,
        max_model_bytes: int,
        intra_op_threads: int,
        providers: tuple[str, ...],
        require_manifest: bool = False,
    ) -> None:
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._max_model_bytes = max_model_bytes
        self._threads = intra_op_threads
        self._providers = providers
        self._require_manifest = require_manifest
        self._quarantine = Quarantine()

    def options(self, config: ModelConfig) -> SessionOptions:
        """Session options of a model: its own where `model.toml` says so, else this machine's."""
        rule = config.session
        threads = rule.intra_op_threads or self._threads
        return SessionOptions(threads, rule.memory_arena, rule.memory_pattern, self._providers)

    def check(self, model: str, files: VersionFiles, config: ModelConfig) -> Report:
        """See Loader."""
        if self._require_manifest and not files.verified:
            raise LoadRejected("it has no manifest.json, which require_manifest demands; use 'headgate model add'")
        job = Job(
            folder=str(files.folder),
            model=model,
            version=files.version,
            options=self.options(config),
            max_model_bytes=self._max_model_bytes,
            memory_bytes=self._memory_bytes,
            batching=config.batching.enabled,
        )
        report = self._quarantine.try_version(job, self._timeout_s)
        try:
            keep.check(config.journal.tensors, (*report.contract.inputs, *report.contract.outputs))
        except ValueError as error:
            raise LoadRejected(str(error)) from None
        return report

    def load(
        self, model: str, files: VersionFiles, config: ModelConfig, report: Report, counters: VersionCounters
    ) -> Servable:
        """See Loader. The bytes that are loaded are hashed, so a file swapped after the trial is refused."""
        data = read_file(files.folder, MODEL, self._max_model_bytes)
        if sha256(data) != report.sha256:
            raise LoadRejected(f"{MODEL} changed between quarantine and loading")
        lineage = read_manifest(files.folder, model, files.version).lineage if files.verified else Lineage()
        session = Session(data, self.options(config), report.unranked)
        return Servable(model, files.version, session, config, report, lineage, counters)

    def close(self) -> None:
        """See Loader."""
        self._quarantine.close()
