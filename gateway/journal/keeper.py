"""Keeper: archives sealed segments, and holds the journal and its archive within their space and age."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from gateway.journal import retention, shelves
from gateway.journal.reader import Damaged, Segment, segments
from gateway.journal.retention import DAY_NS, Action, File, Kind, Rules, Verb
from gateway.journal.schema import SIDE_SUFFIX
from gateway.journal.scribe import Here, Scribe, Unfinished
from gateway.journal.segment import is_orphan
from gateway.settings import Settings

log = logging.getLogger("headgate.journal")


class SystemClock:
    """The time of day."""

    @staticmethod
    def now_ns() -> int:
        """Unix time in nanoseconds."""
        return time.time_ns()


class Kept(NamedTuple):
    """What a step did: actions by verb, bytes that are held by kind, and in words what could not be done."""

    done: dict[str, int]
    held: dict[str, int]
    troubles: list[str]


class Keeper:
    """Works on the data folder of a server: one keeper, in one thread. `totals` counts actions by verb, and troubles.

    `is_read` is asked whether all who read segments are through with the one of a prefix: until then it stays beside
    its archive while there is space. `count` is told of damage that is found in a segment for the first time; `told`
    has the segments of which that was done, here or by who found it before. `scribe` writes files of the archive.
    """

    def __init__(
        self,
        settings: Settings,
        is_read: Callable[[str], bool] = lambda prefix: True,
        now_ns: Callable[[], int] = SystemClock.now_ns,
        count: Callable[[str, int], None] = lambda what, number: None,
        scribe: Here | Scribe | None = None,
    ) -> None:
        self._journal = settings.data / "journal"
        self._archive = settings.data / shelves.FOLDER
        self._rules = Rules(
            settings.journal_archive,
            settings.journal_disk_bytes,
            settings.journal_inputs_days * DAY_NS,
            settings.journal_rows_disk_bytes,
            settings.journal_rows_days * DAY_NS,
        )
        self._is_read = is_read
        self._now_ns = now_ns
        self._scribe = scribe or Here()
        self._known: dict[Path, tuple[tuple[int, int], File]] = {}
        self._count = count
        self._damaged: set[str] = set()
        self.told: set[str] = set()
        self.totals: Counter[str] = Counter()

    def step(self, stop: Callable[[], bool] = lambda: False) -> Kept:
        """Look at everything once and do what is due; `stop` is asked before each action.

        Where no core has time for an archive, all that are not in a hurry wait for another step.
        """
        troubles: list[str] = []
        done: Counter[str] = Counter()
        files, paths = self._look(troubles)
        held: Counter[str] = Counter()
        for file in files:
            held[file.kind] += file.size
        hurry = retention.hurries(held[Kind.SEGMENT], self._rules)
        waits = False
        with closing(self._scribe):
            for action in retention.decide(files, self._rules, self._now_ns()):
                if stop():
                    break
                if action.verb == Verb.ARCHIVE and waits:
                    continue
                waits |= not self._do(action, paths, done, troubles, hurry=hurry)
        self.totals.update(done)
        self.totals["troubles"] += len(troubles)
        return Kept(dict(done), dict(held), troubles)

    def _do(
        self,
        action: Action,
        paths: dict[tuple[str, Kind], Path],
        done: Counter[str],
        troubles: list[str],
        *,
        hurry: bool,
    ) -> bool:
        """Do one action; False where that was not finished and is for another time."""
        file = action.file
        # A file that is stripped in this round may be deleted in it, too.
        path = paths.get((file.prefix, file.kind)) or paths[file.prefix, Kind.FULL]
        facts = {"event": f"journal-{action.verb}", "segment": file.prefix, "reason": action.reason}
        try:
            match action.verb:
                case Verb.ARCHIVE:
                    if damage := self._scribe.archive(path, self._archive, hurry=hurry):
                        self._tell(file.prefix, len(damage))
                        self._trouble(facts, f"segment {file.prefix}: {'; '.join(damage[:3])}", troubles)
                case Verb.STRIP:
                    # Inputs may have to go because they are too old.
                    self._scribe.strip(path, hurry=True)
                case Verb.DELETE if file.kind != Kind.SEGMENT:
                    shelves.remove(path, self._archive)
                case _:
                    path.unlink(missing_ok=True)
                    path.with_suffix(SIDE_SUFFIX).unlink(missing_ok=True)
        except Unfinished:
            log.info("journal: archiving waits", extra=facts | {"event": "journal-archive-waits"})
            return False
        except Damaged as error:
            self._damaged.add(file.prefix)
            self._tell(file.prefix, 1)
            self._trouble(facts, str(error), troubles)
        except OSError as error:
            self._trouble(facts, f"segment {file.prefix}: {error.strerror or 'the disk does not answer'}", troubles)
        else:
            done[action.verb] += 1
            # What is deleted for want of space or for its age is gone for good: it should be seen.
            level = logging.INFO if action.verb in (Verb.DELETE, Verb.STRIP) else logging.DEBUG
            log.log(level, f"journal: {action.verb}", extra=facts)
        return True

    def _tell(self, prefix: str, places: int) -> None:
        if prefix not in self.told:
            self.told.add(prefix)
            self._count("damaged", places)

    def _trouble(self, facts: dict[str, str], words: str, troubles: list[str]) -> None:
        troubles.append(words)
        log.warning("journal: cannot be kept in order", extra=facts | {"trouble": words})

    # -- what is there

    def _look(self, troubles: list[str]) -> tuple[list[File], dict[tuple[str, Kind], Path]]:
        found: list[tuple[Path, File]] = []
        for path in segments(self._journal):
            if (file := self._segment(path)) is not None:
                found.append((path, file))
        known, self._known = self._known, {}
        for place in shelves.places(self._archive):
            try:
                found.append((place.path, self._archived(place, known)))
            except (Damaged, OSError) as error:
                troubles.append(str(error) if isinstance(error, Damaged) else f"{place.path.name}: {error.strerror}")
        return [file for _, file in found], {(file.prefix, file.kind): path for path, file in found}

    def _segment(self, path: Path) -> File | None:
        prefix = path.stem
        size = _size(path) + _size(path.with_suffix(SIDE_SUFFIX))
        opened_ns = shelves.opened_ns(prefix)
        try:
            segment = Segment.open(path)
            # While it is locked its writer may still put a smaller file in its place.
            sealed = segment.sealed and is_orphan(path)
        except Damaged as error:
            if prefix not in self._damaged:
                log.warning("journal: a segment is damaged", extra={"event": "segment-damaged", "reason": str(error)})
            self._damaged.add(prefix)
            self._tell(prefix, 1)
            sealed = True
        except FileNotFoundError:
            return None
        damaged = prefix in self._damaged
        return File(prefix, Kind.SEGMENT, size, opened_ns, 0, sealed, damaged, sealed and self._is_read(prefix))

    def _archived(self, place: shelves.Place, known: dict[Path, tuple[tuple[int, int], File]]) -> File:
        status = place.path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        if place.path in known and known[place.path][0] == stamp:
            self._known[place.path] = known[place.path]
            return known[place.path][1]
        from gateway.journal import archive

        beside = _size(shelves.index_of(self._archive, place.prefix))
        kind, inputs = Kind.BARE, 0
        source = archive.read_source(place.path)
        if not source.bare:
            kind, inputs = Kind.FULL, archive.input_bytes(place.path)
        size = status.st_size + beside
        file = File(place.prefix, kind, size, shelves.opened_ns(place.prefix), size - inputs)
        file = file._replace(damaged=bool(source.damage))
        self._known[place.path] = (stamp, file)
        return file


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
