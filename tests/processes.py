"""Who descends from a process: the processes of a server, and those that try a version for it."""

from __future__ import annotations

from pathlib import Path

from gateway.models import nursery


def parent_of(pid: int) -> int:
    """Its parent; 0 where there is no such process."""
    return int((_read(pid, "stat").rpartition(b")")[2].split() or [b"", b"0"])[1])


def is_alive(pid: int) -> bool:
    """Whether there is a process of that number that is no zombie."""
    return _read(pid, "stat").rpartition(b")")[2].split()[:1] not in ([], [b"Z"])


def descendants(pid: int) -> list[int]:
    """A process and everything that descends from it, zombies included."""
    parents = {int(entry.name): parent_of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found


def family(pid: int) -> list[int]:
    """A process and everything that descends from it, but for quarantine, which comes and goes."""
    return [each for each in descendants(pid) if not _is_quarantine(each)]


def trials(pid: int) -> list[int]:
    """The trials that this process and its descendants run now."""
    return [each for each in descendants(pid) if _name(each) == nursery.NAME]


def nurseries(pid: int) -> list[int]:
    """The nurseries and wardens among its descendants."""
    return [each for each in descendants(pid) if _is_quarantine(each) and _name(each) != nursery.NAME]


def _is_quarantine(pid: int) -> bool:
    return b"gateway.models.nursery" in _read(pid, "cmdline")


def _name(pid: int) -> str:
    return _read(pid, "comm").decode().strip()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
