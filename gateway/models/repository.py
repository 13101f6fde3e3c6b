"""Repository: what people and clients ask of the lifecycle, awaited until it is so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from gateway.errors import (
    ClientError,
    Conflict,
    HeadgateError,
    LoadRejected,
    LoadUnavailable,
    NotFound,
    NotReady,
    UnknownModel,
    UnknownVersion,
)
from gateway.models import policy
from gateway.models.manager import Entry, Manager, Record
from gateway.models.table import STARTING
from gateway.models.wishes import AliasMove, ModelWishes

STEP_S, IDLE_S = 0.05, 0.25
"""Pause between two steps of the manager, while something is under way and while nothing is."""


class Repository:
    """Runs the manager and offers load, unload, reload and aliases. All of it belongs to the loop's thread."""

    def __init__(self, manager: Manager, *, load_timeout_s: float = 120.0) -> None:
        self._manager = manager
        self._load_timeout_s = load_timeout_s

    async def run(self) -> None:
        """Step until cancelled; then stop the trials that run."""
        try:
            while True:
                self._manager.step(time.monotonic())
                # At multiples, as the process's other rhythms are: one wake-up does for all of them.
                pause_s = STEP_S if self._manager.is_working else IDLE_S
                await asyncio.sleep(pause_s - time.monotonic() % pause_s)
        finally:
            self._manager.close()

    @property
    def settled(self) -> bool:
        """True once the folder was read and every wanted version is ready or failed."""
        manager = self._manager
        if manager.scans == 0 or not manager.is_informed:
            return False
        return not any(record.attempt for entry in manager.entries.values() for record in entry.records.values())

    async def load(self, name: str, version: int | None = None) -> None:
        """Load a model, or one version; return when it is ready.

        Raises UnknownModel, UnknownVersion, LoadRejected (the files are at fault, repeated until they change),
        LoadUnavailable (try again later), or Conflict where somebody else unloaded it meanwhile.
        """
        await self._look()
        if version is not None and version not in self._entry(name).records:
            raise UnknownVersion(name, str(version))
        self._wish(name, lambda wishes: _with_loaded(wishes, version))
        await self._until(lambda: self._loaded(name, version), f"failed to load {name!r}")

    async def reload(self, name: str, version: int | None = None) -> None:
        """As `load`, but versions that are ready are tried and loaded anew even when their files are unchanged."""
        await self._look()
        entry = self._entry(name)
        for record in entry.records.values():
            if version in (None, record.version):
                record.served = ()
                record.failure = None
        await self.load(name, version)

    async def unload(self, name: str, version: int | None = None) -> None:
        """Unload a model, or one version; return when its last request is done. It stays out until it is loaded.

        Raises UnknownModel, UnknownVersion, or Conflict where an alias needs the version or somebody else loaded it
        meanwhile.
        """
        await self._look()
        entry = self._entry(name)
        if version is not None:
            if version not in entry.records:
                raise UnknownVersion(name, str(version))
            holders = sorted(alias for alias, target in entry.aliases.items() if target == version)
            if holders:
                raise Conflict(f"version {version} of {name!r} is the {holders[0]}; move that alias first")
        self._wish(name, lambda wishes: _with_unloaded(wishes, version))
        await self._until(lambda: self._unloaded(name, version), f"failed to unload {name!r}")

    async def move_alias(self, name: str, alias: str, version: int | None) -> None:
        """Point an alias at a ready version, or remove it (None). Raises Conflict where the version is not ready."""
        entry = self._entry(name)
        if version is None and alias not in entry.aliases:
            raise NotFound(f"model {name!r} has no alias {alias!r}")
        if version is not None:
            record = entry.records.get(version)
            if record is None:
                raise UnknownVersion(name, str(version))
            if record.servable is None:
                raise Conflict(f"alias {alias!r} cannot move: version {version} of {name!r} is not ready")
        declared = entry.config.aliases.get(alias) if entry.config is not None else None
        wishes = self._manager.wishes.get(name)
        moves = {**wishes.aliases, alias: AliasMove(version, declared)}
        self._manager.wishes.put(name, msgspec.structs.replace(wishes, aliases=moves))
        await self._until(lambda: True, f"failed to move alias {alias!r} of {name!r}")

    # -- waiting

    async def _look(self) -> None:
        """Wait for a look at the folder that begins after now."""
        goal = self._manager.scan_soon()
        await self._until(lambda: self._manager.scans >= goal, "failed to load: the model folder does not answer")

    async def _until(self, reached: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + self._load_timeout_s
        while True:
            self._manager.step(time.monotonic())
            if reached() and self._manager.table.is_everywhere:
                return
            if time.monotonic() > deadline:
                raise LoadUnavailable(f"{otherwise}, not done after {self._load_timeout_s:g} s")
            await asyncio.sleep(STEP_S)

    def _entry(self, name: str) -> Entry:
        entry = self._manager.entries.get(name)
        if entry is None:
            raise UnknownModel(name) if self._manager.is_informed else NotReady(STARTING)
        return entry

    def _wish(self, name: str, change: Callable[[ModelWishes], ModelWishes]) -> None:
        entry = self._entry(name)
        for record in entry.records.values():
            # What lacked resources is tried again at once; what was refused stays refused until its files change.
            if record.failure is not None and record.failure.retry_at is not None:
                record.failure = None
        wishes = self._manager.wishes.get(name)
        changed = change(wishes)
        if changed != wishes:
            self._manager.wishes.put(name, changed)

    def _loaded(self, name: str, version: int | None) -> bool:
        entry = self._entry(name)
        if entry.error:
            raise LoadRejected(f"failed to load {name!r}: {entry.error}")
        if version is not None and version not in entry.records:
            raise UnknownVersion(name, str(version))
        wishes = self._manager.wishes.get(name)
        # What is unloaded and loaded again between two looks is held no more, but nobody may want this version now.
        if wishes.excludes(version) or (version is not None and version not in wishes.pinned):
            raise Conflict(f"failed to load {name!r}: another request unloaded it meanwhile")
        goals = [version] if version is not None else self._ideal(entry)
        if not goals:
            raise LoadRejected(f"failed to load {name!r}, no version is available")
        return all(self._up(entry, entry.records[goal]) for goal in goals)

    def _ideal(self, entry: Entry) -> list[int]:
        """The versions that would serve if nothing failed: a failed newest one is not passed over in silence."""
        views = self._manager.views(entry, time.monotonic())
        hopeful = [policy.VersionView(view.version, present=view.present) for view in views]
        return sorted(self._manager.wanted(entry, hopeful))

    def _up(self, entry: Entry, record: Record) -> bool:
        """True when ready with its present files; raises what stopped it."""
        files = record.files
        failure = record.failure
        if files is None:
            raise UnknownVersion(entry.name, str(record.version))
        identity = entry.identity(files)
        if failure is not None and failure.identity == identity:
            raise _failed(entry.name, record.version, failure.error)
        return record.servable is not None and record.served == identity

    def _unloaded(self, name: str, version: int | None) -> bool:
        entry = self._manager.entries.get(name)
        if entry is None:
            return True
        if not self._manager.wishes.get(name).excludes(version):
            raise Conflict(f"failed to unload {name!r}: another request loaded it meanwhile")
        records = [record for record in entry.records.values() if version in (None, record.version)]
        # A trial that still runs is not waited for: what comes of it will not be loaded.
        return not any(record.servable or record.draining for record in records)


def _failed(name: str, version: int, error: HeadgateError) -> HeadgateError:
    message = f"failed to load {name!r} version {version}: {error.message}"
    return LoadRejected(message) if isinstance(error, ClientError) else LoadUnavailable(message, retry_after_s=10)


def _with_loaded(wishes: ModelWishes, version: int | None) -> ModelWishes:
    if version is None:
        return msgspec.structs.replace(wishes, all_held=False, held=())
    held = tuple(other for other in wishes.held if other != version)
    return msgspec.structs.replace(wishes, held=held, pinned=tuple(sorted({*wishes.pinned, version})))


def _with_unloaded(wishes: ModelWishes, version: int | None) -> ModelWishes:
    if version is None:
        return msgspec.structs.replace(wishes, all_held=True, held=(), pinned=())
    pinned = tuple(other for other in wishes.pinned if other != version)
    return msgspec.structs.replace(wishes, held=tuple(sorted({*wishes.held, version})), pinned=pinned)
