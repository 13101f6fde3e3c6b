"""Chores: what the control process does every so often, in a thread of its own behind everything else."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gateway.journal.recovery import recover

log = logging.getLogger("headgate.chores")

NICENESS = 15
Count = Callable[[str, int], None]


@dataclass
class Chore:
    """One of them: what is done, and how many seconds after it was last done."""

    name: str
    every_s: float
    work: Callable[[], object]
    due: float = field(default=0.0)


class Chores:
    """A thread that does one chore after the other. One that fails is logged, and tried again when it is due."""

    def __init__(self, *chores: Chore) -> None:
        self._chores = chores
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chores", daemon=True)

    def start(self) -> None:
        """Begin; the first round is at once."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End after the chore that is being done, or after `timeout_s`."""
        self._stop.set()
        self._thread.join(timeout_s)

    def is_stopping(self) -> bool:
        """Whether a chore that takes long should end."""
        return self._stop.is_set()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not self._stop.is_set():
            now = time.monotonic()
            for chore in self._chores:
                if chore.due <= now and not self._stop.is_set():
                    try:
                        chore.work()
                    except Exception as error:  # whatever it is, the others must go on
                        log.error("chore failed", exc_info=error, extra={"event": "chore-failed", "chore": chore.name})
                    chore.due = time.monotonic() + chore.every_s
            soonest = min(chore.due for chore in self._chores)
            self._stop.wait(max(0.05, soonest - time.monotonic()))


def recover_journal(folder: Path, count: Count, told: set[str]) -> None:
    """Seal what dead workers left, and say what it was. Segments whose damage is counted here are added to `told`."""
    for found in recover(folder):
        facts: dict[str, object] = found._asdict() | {"damage": found.damage[:8]}
        facts["segment"] = facts.pop("name")
        if found.damage or found.cut:
            log.error("journal damaged", extra={"event": "journal-damaged", **facts})
        else:
            log.warning("journal recovered", extra={"event": "journal-recovered", **facts})
        count("segments-recovered", 1)
        count("torn", int(found.torn_bytes > 0))
        count("cut", found.cut)
        count("damaged", len(found.damage))
        if found.damage:
            told.add(Path(found.name).stem)
