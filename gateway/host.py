"""Facts about the machine: how many cores, how much memory and how many open files this process may really use.

Every function reads files below `root`, so a test can hand it a made-up /proc and /sys/fs/cgroup. What cannot be read
is None, never a guess. Linux only; elsewhere all is None, and `cores` takes what the operating system says. The last
functions turn to the running system instead: a folder, a port, the clock, the environment, a name, a parent.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
_CGROUP = Path("sys/fs/cgroup")

_SET_NAME = 15  # prctl(PR_SET_NAME)
_DEATH_SIGNAL = 1  # prctl(PR_SET_PDEATHSIG)

WORKERS_SHARE = 0.85
"""The share of the memory that the workers may have; the rest is for the control process and for quarantine."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores this process may use: `count` is the smaller of `affinity` and `quota`, and `source` says which.

    `quota` is a number of cores, often no whole one, and None where no cgroup limits the time. `host` is what the
    machine has, the number that libraries size their thread pools by.
    """

    count: float
    source: str
    host: int
    affinity: int
    quota: float | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of main memory. Swap is not counted: a model that is swapped out does not answer in time.

    `limit` is the least of the machine's memory and the limits of the cgroups above this process, `source` says which;
    `free` is what can still be taken below all of them, file caches counted as free.
    """

    limit: int
    source: str
    host: int
    free: int


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """RLIMIT_NOFILE: `soft` is in force, a process may raise it to `hard` by itself. None: unlimited."""

    soft: int | None
    hard: int | None


@dataclass(frozen=True, slots=True)
class Resident:
    """Bytes of a process in main memory, now and at its highest."""

    now: int
    peak: int


@dataclass(frozen=True, slots=True)
class Place:
    """A folder to write to: whether it exists, why it cannot be written (empty: it can), bytes free on its disk."""

    exists: bool
    refused: str
    free: int


def intra_op_threads(cores: float, sessions: int, workers: int = 1, setting: int = 0) -> int:
    """Threads for each of `sessions` sessions that can run at once in each of `workers` processes on `cores` cores.

    The rule: `setting` where it is not 0, else the whole part of an equal share, at least 1. ONNX Runtime left to
    itself takes one thread per core of the host, whatever the cgroup allows: on a large machine a container with a
    quota of two cores would start dozens of threads for each session and be throttled with all of them. Rounded down,
    because threads beyond the quota use it up early and then everything waits for the next period.
    """
    if setting:
        return setting
    return max(1, int(cores / (max(1, workers) * max(1, sessions)) + 1e-9))


def worker_memory(memory: Memory | None, workers: int, setting: int = 0) -> int:
    """Bytes that each of `workers` processes may hold: `setting` where it is not 0, else an equal share of the memory.

    0, which is no limit, where nothing is known of the memory. Without a limit of its own a server that grows meets the
    kernel's, which ends a worker with all that it has taken.
    """
    if setting or memory is None:
        return setting
    return int(memory.limit * WORKERS_SHARE / max(1, workers))


def connection_cap(open_files: OpenFiles | None) -> int | None:
    """The most connections to hold: half of the open files allowed, so that accepting never runs out of them.

    The other half is for models, journals and sockets of our own. None: no limit is known.
    """
    if open_files is None or open_files.soft is None:
        return None
    return max(1, open_files.soft // 2)


def cores(root: Path = ROOT) -> Cores:
    """The cores that affinity and cgroup quota leave to this process, nested cgroups included."""
    online = _numbers(_read(root / "sys/devices/system/cpu/online"))
    host = len(online) or os.cpu_count() or 1
    # The kernel also lists processors that were never plugged in as allowed.
    allowed = _allowed(root)
    affinity = len(allowed & online if online else allowed) or host
    quotas = [(quota, "cgroup v2 cpu.max") for group in _groups(root, "") if (quota := _v2_quota(group))]
    quotas += [(quota, "cgroup v1 cpu.cfs_quota_us") for group in _groups(root, "cpu") if (quota := _v1_quota(group))]
    quota, source = min(quotas, default=(None, ""))
    if quota is not None and quota < affinity:
        return Cores(quota, source, host, affinity, quota)
    return Cores(float(affinity), "affinity" if affinity < host else "host", host, affinity, quota)


def memory(root: Path = ROOT) -> Memory | None:
    """The memory that the machine and the cgroups leave to this process, nested cgroups included."""
    table = _pairs(root / "proc/meminfo")
    host, available = table.get("MemTotal"), table.get("MemAvailable")
    if host is None or available is None:
        return None
    limits, rooms = [(host * 1024, "host")], [available * 1024]
    for group in _groups(root, ""):
        for name in ("memory.max", "memory.high"):
            _add(limits, rooms, _number(group / name), f"cgroup v2 {name}", group, "memory.current", "inactive_file")
    for group in _groups(root, "memory"):
        limit = _number(group / "memory.limit_in_bytes")
        usage = "memory.usage_in_bytes"
        _add(limits, rooms, limit, "cgroup v1 memory.limit_in_bytes", group, usage, "total_inactive_file")
    # A v1 group without a limit shows a huge number; being above the machine's memory it is never the least.
    limit, source = min(limits)
    return Memory(limit, source, host * 1024, max(0, min(rooms)))


def open_files(root: Path = ROOT) -> OpenFiles | None:
    """How many files this process may have open."""
    for line in _read(root / "proc/self/limits").splitlines():
        if line.startswith("Max open files"):
            soft, hard = line.split()[3:5]
            return OpenFiles(int(soft) if soft.isdigit() else None, int(hard) if hard.isdigit() else None)
    return None


def resident(pid: int | None = None, root: Path = ROOT) -> Resident | None:
    """The memory that a process (None: this one) holds; None once it has ended."""
    table = _pairs(root / "proc" / ("self" if pid is None else str(pid)) / "status")
    now, peak = table.get("VmRSS"), table.get("VmHWM")
    # The kernel counts the two apart and in batches, so the peak can lag behind by a few pages.
    return None if now is None or peak is None else Resident(now * 1024, max(now, peak) * 1024)


def place(folder: Path) -> Place:
    """Whether `folder` can be written, or where it is missing, made below the nearest folder that exists.

    Found out by writing, because permissions alone do not tell of read-only disks, quotas or root. Leaves no trace.
    """
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    try:
        with tempfile.TemporaryFile(dir=existing):
            return Place(folder.exists(), "", free)
    except OSError as error:
        return Place(folder.exists(), error.strerror or type(error).__name__, free)


def refused_port(address: str, port: int) -> str:
    """The operating system's reason why `port` cannot be listened on; empty where it can."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(target)
            listener.listen(1)
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def is_clock_synchronised() -> bool | None:
    """What the kernel knows about its time of day, None where it does not say."""
    try:
        # The kernel's structure has 208 bytes; all zero asks for the state and changes nothing.
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except AttributeError:
        return None
    # 0 to 4 are states of a clock that is kept, 5 is TIME_ERROR, -1 a refusal.
    return None if state < 0 else state < 5


def c_variable(name: str) -> str | None:
    """An environment variable as a C library sees it, which need not be what `os.environ` holds."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    value: bytes | None = getenv(name.encode())
    return None if value is None else value.decode(errors="replace")


def set_name(name: str) -> None:
    """Call this thread so for `top` and `ps -o comm`, where a forked process has the command line of its parent.

    The first 15 bytes count.
    """
    ctypes.CDLL(None).prctl(_SET_NAME, name.encode())


def end_with(parent: int) -> bool:
    """Have this process killed when its `parent` ends; False where that has ended already."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    return os.getppid() == parent


def stand_back(niceness: int) -> None:
    """Let others go first: as a process, and as a session, each of which Linux may give the same share of a core."""
    os.nice(niceness)
    with suppress(OSError):  # where it does not
        Path("/proc/self/autogroup").write_text(str(niceness))


def bare_environment() -> dict[str, str]:
    """Only what Python needs to start: who works on files has no business with the secrets of the environment."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "PYTHONPATH": path, **kept}


def _allowed(root: Path) -> frozenset[int]:
    for line in _read(root / "proc/self/status").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return _numbers(line.partition(":")[2])
    return frozenset()


def _numbers(text: str) -> frozenset[int]:
    """The numbers that a kernel list such as ``0-3,8`` names; none where it is not one."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            return frozenset()
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup for a v1 controller (empty: v2) and of all groups above it.

    Inside a container /proc often shows the path on the host while the container's own group is mounted as the top:
    then the deeper folders do not exist, and what exists is exactly what is to be read. A group outside of the
    process's namespace is shown with ``..``, which leads nowhere here either.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller not in names.split(","):
            continue
        mounts = (names, controller) if controller else (".", "unified")
        steps = PurePosixPath("/", *(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
        for mount in dict.fromkeys(mounts):
            for step in (steps, *steps.parents):
                folder = root / _CGROUP / mount / step.relative_to("/")
                if folder.is_dir():
                    yield folder


def _v2_quota(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    if not quota.isdigit() or not period.isdigit() or not int(period):
        return None
    return int(quota) / int(period)


def _v1_quota(group: Path) -> float | None:
    quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _add(
    limits: list[tuple[int, str]],
    rooms: list[int],
    limit: int | None,
    source: str,
    group: Path,
    usage: str,
    cache: str,
) -> None:
    """Note one group's limit, and what is left below it; its cache of files is given back when memory is wanted."""
    if limit is None:
        return
    limits.append((limit, source))
    used = _number(group / usage)
    if used is not None:
        rooms.append(limit - max(0, used - _pairs(group / "memory.stat").get(cache, 0)))


def _pairs(path: Path) -> dict[str, int]:
    """The lines ``name number`` or ``Name: number kB`` of a kernel file, the numbers as they stand."""
    table: dict[str, int] = {}
    for line in _read(path).splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].isdigit():
            table[words[0].rstrip(":")] = int(words[1])
    return table


def _number(path: Path) -> int | None:
    """The one number a kernel file holds; None for ``max``, ``-1`` or no file."""
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
