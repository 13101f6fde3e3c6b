"""Timing of small pieces of code: CPU time of this thread, the quickest of several loops, as noise only ever adds."""

from __future__ import annotations

import time
from collections.abc import Callable

LOOP_S = 0.02
LOOPS = 9


def seconds_per_call(call: Callable[[], object]) -> float:
    """CPU seconds of one call; it has been called before the clock starts."""
    call()
    count = 1
    while (taken := _loop(call, count)) < LOOP_S:
        count = max(count + 1, min(count * 10, int(count * 1.2 * LOOP_S / max(taken, 1e-9))))
    return min(taken, *(_loop(call, count) for _ in range(LOOPS - 1))) / count


def _loop(call: Callable[[], object], count: int) -> float:
    began = time.thread_time()
    for _ in range(count):
        call()
    return time.thread_time() - began
