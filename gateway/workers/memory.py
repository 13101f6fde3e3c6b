"""MemoryGuard: a worker that holds more memory than it may takes no more inference requests until it holds less."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
from collections.abc import Callable

from gateway.errors import NotReady
from gateway.inference.admission import Admission
from gateway.inference.pipeline import Pipeline

log = logging.getLogger("headgate.worker")

ENOUGH = 0.9
"""Below this share of the limit requests are taken again."""

RETRY_S = 5
GIVE_BACK_CHECKS = 20
"""While it is short, memory that is free inside of the process is given back after every so many checks."""


class ClosedAdmission(Admission):
    """Refuses everybody; who is inside leaves as before."""

    def __init__(self, inner: Admission) -> None:
        super().__init__(inner.quotas)
        self.inner = inner

    def admit(self, model: str, in_flight: int, wait_s: float, key: str) -> None:
        """See Admission. Raises NotReady."""
        raise NotReady("the server is short of memory; it takes requests again when it has more", retry_after_s=RETRY_S)

    def leave(self, key: str, count: int = 1) -> None:
        """See Admission."""
        self.inner.leave(key, count)


def own_bytes() -> int:
    """Resident memory of this process but for mapped files, as the journal's, which the system can take back."""
    with open("/proc/self/statm", encoding="ascii") as file:
        _, resident, shared = file.read().split()[:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Collect garbage, and return free memory to the system where the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class MemoryGuard:
    """Closes and opens the admission of a pipeline, which costs a request nothing. `limit` in bytes, 0 for none."""

    def __init__(
        self,
        pipeline: Pipeline,
        limit: int,
        held: Callable[[], int] = own_bytes,
        give_back: Callable[[], None] = give_back,
    ) -> None:
        self._pipeline = pipeline
        self._limit = limit
        self._held = held
        self._give_back = give_back
        self._closed_checks = 0

    def check(self) -> None:
        """Called a few times a second."""
        if not self._limit:
            return
        admission = self._pipeline.admission
        used = self._held()
        facts = {"used_bytes": used, "limit_bytes": self._limit}
        if isinstance(admission, ClosedAdmission):
            self._closed_checks += 1
            if used < ENOUGH * self._limit:
                self._pipeline.admission = admission.inner
                log.info("memory suffices", extra={"event": "memory-suffices", **facts})
            elif self._closed_checks % GIVE_BACK_CHECKS == 0:
                self._give_back()
        elif used > self._limit:
            self._give_back()
            if self._held() > self._limit:
                self._pipeline.admission = ClosedAdmission(admission)
                log.error("short of memory", extra={"event": "memory-short", **facts})
