"""What a worker holds, for tests that look whether it grows."""

from __future__ import annotations

import os
from pathlib import Path

from tests.servers import Server


def anonymous_mib(server: Server) -> float:
    """Main memory of the worker that is its own. The journal's pages, which are a file's, are not counted."""
    lines = Path(f"/proc/{server.pid('worker 1')}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def descriptors(server: Server) -> int:
    """Open files of the worker."""
    return len(os.listdir(f"/proc/{server.pid('worker 1')}/fd"))
