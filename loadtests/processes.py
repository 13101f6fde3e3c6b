"""Processes of a load test: pinned to cores, started, watched and always ended."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
START_S = 120.0
STOP_S = 30.0
SETTLE_S = 10.0


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where. All sets are empty where processes cannot be pinned, and equal where there is one core."""

    server: frozenset[int]
    generator: frozenset[int]

    @property
    def both(self) -> frozenset[int]:
        """Two cores shared by servers and load generator."""
        return self.server | self.generator


def choose_cores() -> Cores:
    """Two of the cores that this process may use, not hyper-threads of one core where that can be had."""
    if not hasattr(os, "sched_getaffinity"):
        return Cores(frozenset(), frozenset())
    allowed = sorted(os.sched_getaffinity(0))
    first = allowed[0]
    apart = [core for core in allowed if core not in _siblings(first)]
    other = next(iter(apart or allowed[1:]), first)
    return Cores(frozenset({first}), frozenset({other}))


def _siblings(core: int) -> set[int]:
    """The hyper-threads that share the core, itself included."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    found = {core}
    if path.exists():
        for low, high in re.findall(r"(\d+)(?:-(\d+))?", path.read_text()):
            found |= set(range(int(low), int(high or low) + 1))
    return found


@contextmanager
def pinned(cores: Collection[int]) -> Iterator[None]:
    """Processes started within run on `cores` only (empty: anywhere), as children inherit the affinity."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def environment() -> dict[str, str]:
    """The environment of every process of a load test: no setting of Headgate's leaks in."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HEADGATE_")}


class Server:
    """A server process that prints ``... on http://host:port`` when it listens. A context manager; `url` is its root.

    What it logs goes to the file `log`.
    """

    def __init__(self, name: str, command: Sequence[str], cores: Collection[int], log: Path) -> None:
        self.name = name
        self._log = log
        with pinned(cores), open(log, "wb") as errors:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=environment(), text=True
            )
        try:
            self.url = self._read_url()
        except BaseException:
            self.stop()
            raise

    def _read_url(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_S)
        line = self._process.stdout.readline() if ready else ""
        found = re.search(r" on (http://\S+)", line)
        if found is None:
            raise RuntimeError(f"{self.name} did not start: {line.strip() or self.last_words()}")
        return found[1]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    @property
    def alive(self) -> bool:
        """Whether the process that was started still runs."""
        return self._process.poll() is None

    def last_words(self) -> str:
        """The end of the log."""
        return self._log.read_text(errors="replace").strip()[-600:]

    def processes(self) -> list[int]:
        """Ids of the process and of all that descend from it, now."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            if (fields := _stat(int(entry.name))) is not None:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
        found = [self._process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def cpu_s(self) -> float:
        """CPU seconds that the living processes of the tree have used; 0 where there is no /proc."""
        return sum(cpu_s(pid) for pid in self.processes())

    def settle(self) -> None:
        """Wait until it does nothing more for clients that have left: otherwise that would count as the next run's."""
        deadline = time.monotonic() + SETTLE_S
        before = self.cpu_s()
        while time.monotonic() < deadline:
            time.sleep(0.05)
            now = self.cpu_s()
            if now - before < 0.02:
                return
            before = now

    def stop(self) -> None:
        """Ask it to end, wait, and insist."""
        if self.alive:
            self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def cpu_s(pid: int) -> float:
    """CPU seconds of one process; 0 for one that is gone."""
    fields = _stat(pid)
    return 0.0 if fields is None else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def private_bytes(pid: int) -> int:
    """Memory that only this process holds: resident, but not backed by a file (which the kernel can take back)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(found) for found in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", status, re.MULTILINE)) * 1024


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on, or None for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()
