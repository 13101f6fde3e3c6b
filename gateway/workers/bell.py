"""The bell: how a process of a server is told that something has changed, so that nobody has to look all the time.

What has changed is on the board and in the files. The bell is a signal that a process ignores unless it listens, as one
does not that has just been born: who waits for it looks now and then without it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

SIGNAL = signal.SIGURG


def ring(pid: int) -> None:
    """Ring at a process; 0 for none. One that has ended does not matter."""
    if pid:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, SIGNAL)


class Bell:
    """Listens for the bell in the running loop."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(SIGNAL, self._rung.set)

    async def wait(self, seconds: float) -> None:
        """Until it rings, or for so long; at once where it has rung since the last time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        self._rung.clear()
