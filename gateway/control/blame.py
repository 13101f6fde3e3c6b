"""Blame: which versions crash workers, told from what crashed workers were doing.

One that crashes them while it is loaded, or by one input after another, is blocked: it is withdrawn, the version
before it serves again, and it stays out over a restart until its files change or it is reloaded by request. One that
crashes them by the same input again and again goes on, and that input is refused.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from gateway.errors import LoadRejected
from gateway.models.manager import Failure, Manager
from gateway.routing import plan as plans
from gateway.workers.notes import Culprit, Death, VersionKey, append, read_deaths

log = logging.getLogger("headgate.control")

PARDON = "pardoned"
"""The cause of a line in the file of deaths that takes others back."""

WINDOW_S = 60.0
RUN_DEATHS = 5
"""So many crashes within the window while a version ran, by rows that differ, and it is blocked."""

LOAD_DEATHS = 3
"""So many crashes within the window while a version was loaded, and it is blocked."""

PAYLOAD_DEATHS = 2
"""A row that was in the run of so many crashes is refused. Digests are known from the second crash on."""

SUSPECT_S = 600.0
"""How long after a crash the rows of a version are looked at one by one."""


class Blocked(msgspec.Struct, frozen=True):
    """A version that may not be loaded, and why."""

    key: VersionKey
    reason: str


class BlockedVersions(msgspec.Struct, frozen=True):
    """The file that keeps them."""

    versions: list[Blocked] = []


class Blame:
    """Follows the file of deaths. Load threads ask too, so a lock guards it."""

    def __init__(self, deaths: Path, kept: Path) -> None:
        self._path = deaths
        self._kept = kept
        self._offset = 0
        self._lock = threading.Lock()
        self._deaths: list[Death] = []
        self._blocked: dict[VersionKey, str] = {}
        try:
            found = msgspec.json.decode(kept.read_bytes(), type=BlockedVersions)
            self._blocked = {each.key: each.reason for each in found.versions}
        except FileNotFoundError:
            pass
        except msgspec.DecodeError:
            log.error("blocked versions lost", extra={"event": "blocked-lost", "reason": f"{kept.name} is damaged"})

    def look(self) -> bool:
        """Read what is new. True where there was anything."""
        with self._lock:
            new, self._offset = read_deaths(self._path, self._offset)
            for death in new:
                if death.cause == PARDON:
                    self._forgive({culprit.key for culprit in death.culprits})
                    continue
                self._deaths.append(death)
                for culprit in death.culprits:
                    self._judge(culprit, death)
            return bool(new)

    @property
    def is_calm(self) -> bool:
        """True while no version has crashed a worker, as long as is remembered."""
        return not self._deaths and not self._blocked

    def reason(self, key: VersionKey) -> str:
        """Why a version is blocked, empty where it is not."""
        return self._blocked.get(key, "")

    def loads(self, key: VersionKey) -> list[Death]:
        """The crashes while this version was being loaded."""
        return [death for death in self._deaths if any(each.key == key and each.loading for each in death.culprits)]

    def runs(self, key: VersionKey) -> list[Death]:
        """The crashes while this version ran."""
        return [death for death in self._deaths if any(each.key == key and not each.loading for each in death.culprits)]

    def is_suspect(self, key: VersionKey, now: float) -> bool:
        """Whether workers have crashed lately while this version ran."""
        return any(now - death.at_s < SUSPECT_S for death in self.runs(key))

    def refused(self, key: VersionKey) -> tuple[int, ...]:
        """Digests of the rows that were in the run of several crashes."""
        counts: Counter[int] = Counter()
        for death in self.runs(key):
            counts.update({digest for each in death.culprits if each.key == key for digest in each.digests})
        return tuple(sorted(digest for digest, count in counts.items() if count >= PAYLOAD_DEATHS))

    def pardon(self, model: str, version: int | None) -> None:
        """Somebody wants the versions of a model (None: all) tried again, whatever they did."""
        with self._lock:
            pardoned = [key for key in self._blocked if key.model == model and version in (None, key.version)]
        if pardoned:
            # By way of the file, which the next control process reads from its beginning.
            append(self._path, Death(0.0, 0, PARDON, tuple(Culprit(key, False) for key in pardoned)))
            self.look()

    def _forgive(self, keys: set[VersionKey]) -> None:
        self._deaths = [death for death in self._deaths if not keys & {each.key for each in death.culprits}]
        self._blocked = {key: reason for key, reason in self._blocked.items() if key not in keys}
        self._keep()

    def _judge(self, culprit: Culprit, death: Death) -> None:
        key = culprit.key
        kind, limit = ("loading", LOAD_DEATHS) if culprit.loading else ("running", RUN_DEATHS)
        deaths = self.loads(key) if culprit.loading else self._unexplained(key)
        recent = [each for each in deaths if death.at_s - each.at_s < WINDOW_S]
        counted = recent if culprit.loading else _counted(key, recent)
        if key in self._blocked or len(counted) < limit:
            return
        causes = ", ".join(sorted({each.cause for each in recent}))
        reason = f"{len(recent)} workers crashed ({causes}) while {kind} it; it stays out until replaced or reloaded"
        # Whatever stood here for other files of the same version is over.
        others = {k: r for k, r in self._blocked.items() if (k.model, k.version) != (key.model, key.version)}
        self._blocked = {**others, key: reason}
        self._keep()
        facts = {"model": key.model, "version": key.version, "reason": reason}
        log.error("version blocked", extra={"event": "version-blocked", **facts})

    def _unexplained(self, key: VersionKey) -> list[Death]:
        """Crashes while a version ran that no refused input explains."""
        refused = set(self.refused(key))
        return [
            death
            for death in self.runs(key)
            if not any(refused & set(each.digests) for each in death.culprits if each.key == key)
        ]

    def _keep(self) -> None:
        versions = [Blocked(key, reason) for key, reason in sorted(self._blocked.items())]
        try:
            plans.write(self._kept, BlockedVersions(versions))
        except OSError as error:
            log.error("not kept", extra={"event": "blocked-not-kept", "reason": error.strerror or ""})


def _counted(key: VersionKey, deaths: list[Death]) -> list[Death]:
    """The crashes that count against a version that ran.

    Until workers have heard of the first crash they note no rows, and all may die of the same one: that is one crash.
    If it goes on so, they will never hear of it, and the version is to blame whatever it ran.
    """
    noted = [death for death in deaths if any(each.key == key and each.digests for each in death.culprits)]
    unnoted = [death for death in deaths if death not in noted]
    return noted + unnoted[:1] + unnoted[RUN_DEATHS:]


def withdraw(manager: Manager, keys: Iterable[tuple[VersionKey, str]]) -> None:
    """Take what serves of these versions out at once, without waiting for others to take their place."""
    for key, reason in keys:
        entry = manager.entries.get(key.model)
        record = entry.records.get(key.version) if entry is not None else None
        if entry is None or record is None or record.servable is None:
            continue
        record.servable.withdraw()
        record.draining.append(record.servable)
        record.servable, record.served = None, ()
        if record.files is not None:
            record.failure = Failure(entry.identity(record.files), LoadRejected(reason), None, 1)
