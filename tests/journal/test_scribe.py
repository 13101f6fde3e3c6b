"""The process that writes the archive: what it makes, how far it stands behind, and what its ends come to."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.journal import shelves
from gateway.journal.keeper import Keeper
from gateway.journal.reader import Damaged, Segment
from gateway.journal.scribe import Here, Scribe, Unfinished
from gateway.settings import Settings
from tests.inference.fakes import ECHO, servable
from tests.journal.rig import Gateway, document, normal

pytestmark = pytest.mark.slow(4)

PARENT = """
import sys, time
from pathlib import Path
from gateway.journal.scribe import Scribe
scribe = Scribe()
scribe.archive(Path(sys.argv[1]), Path(sys.argv[2]))
print(scribe._process.pid, flush=True)
time.sleep(60)
"""


def served(data: Path, seed: int) -> Segment:
    gateway = Gateway(data, servable(contract=ECHO))
    gateway.send([[document(x=normal(200, 2, seed))]])
    (segment,) = gateway.close()
    return segment


@pytest.fixture
def scribe() -> Iterator[Scribe]:
    made = Scribe()
    yield made
    made.close()


def pid_of(scribe: Scribe) -> int:
    assert scribe._process is not None
    return scribe._process.pid


def wait_for_the_end(process: int) -> None:
    """Of a process that is not this one's child; `process` is a descriptor."""
    assert select.select([process], [], [], 30)[0]


def test_its_files_are_those_that_are_written_here(tmp_path: Path, scribe: Scribe) -> None:
    segment = served(tmp_path, 1)
    target = shelves.path_of(Path(), "m", 1, segment.spec.prefix)
    pids = set()
    for hurry in (False, False, True):
        folder = tmp_path / f"there-{len(pids)}"
        assert scribe.archive(segment.path, folder, hurry=hurry) == ()
        assert Here().archive(segment.path, tmp_path / "here") == ()
        assert (folder / target).read_bytes() == (tmp_path / "here" / target).read_bytes()
        pids.add(pid_of(scribe))
    assert len(pids) == 2, "one process for all that has the same time"
    scribe.strip(folder / target, hurry=True)
    Here().strip(tmp_path / "here" / target)
    assert (folder / target).read_bytes() == (tmp_path / "here" / target).read_bytes()


@pytest.mark.parametrize(("hurry", "policy"), [(False, os.SCHED_IDLE), (True, os.sched_getscheduler(0))])
def test_it_takes_only_time_that_nobody_wants_unless_it_is_in_a_hurry(
    tmp_path: Path, scribe: Scribe, hurry: bool, policy: int
) -> None:
    scribe.archive(served(tmp_path, 1).path, tmp_path / "archive", hurry=hurry)
    assert os.sched_getscheduler(pid_of(scribe)) == policy
    assert os.getsid(pid_of(scribe)) == os.getsid(0), "in a session of its own it would get as much as all of this one"


def test_what_is_wrong_with_a_segment_is_said_as_it_is_here(tmp_path: Path, scribe: Scribe) -> None:
    segment = served(tmp_path, 1)
    data = bytearray(segment.path.read_bytes())
    data[next(column.offset for column in segment.spec.columns if column.group == "input") + 5] ^= 1
    segment.path.write_bytes(data)
    words = []
    for each in (scribe, Here()):
        with pytest.raises(Damaged) as raised:
            each.archive(segment.path, tmp_path / "archive")
        words.append(str(raised.value))
        with pytest.raises(FileNotFoundError):
            each.archive(tmp_path / "none.segment", tmp_path / "archive")
    assert words[0] == words[1]
    assert "do not fit their checksum" in words[0]


@pytest.mark.parametrize("impatient", [True, False])
def test_a_file_that_takes_too_long_or_is_not_waited_for_is_for_another_time(tmp_path: Path, impatient: bool) -> None:
    """Its process is stopped, as one that no core has time for."""
    first, second = served(tmp_path / "1", 1), served(tmp_path / "2", 2)
    over = False
    scribe = Scribe(lambda: over)
    scribe.archive(first.path, tmp_path / "archive")
    process = os.pidfd_open(pid_of(scribe))
    os.kill(pid_of(scribe), signal.SIGSTOP)
    over = not impatient
    if impatient:
        scribe._patience_s = 0.0
    with pytest.raises(Unfinished):
        scribe.archive(second.path, tmp_path / "archive")
    wait_for_the_end(process)
    os.close(process)
    assert [place.prefix for place in shelves.places(tmp_path / "archive")] == [first.spec.prefix]


def test_a_scribe_that_is_killed_is_told_and_the_next_step_has_another_one(tmp_path: Path) -> None:
    segment = served(tmp_path, 1)

    class Killed(Scribe):
        killed = False

        def archive(self, segment: Path, folder: Path, *, hurry: bool = False) -> tuple[str, ...]:
            if self.killed:
                return super().archive(segment, folder, hurry=hurry)
            self.killed = True
            super().archive(segment, tmp_path / "elsewhere", hurry=hurry)
            os.kill(pid_of(self), signal.SIGKILL)
            return super().archive(segment, folder, hurry=hurry)

    scribe = Killed()
    keeper = Keeper(Settings(data=tmp_path), scribe=scribe)
    wanted = f"segment {segment.spec.prefix}: the process that wrote it ended with SIGKILL"
    assert keeper.step() == ({}, {"segment": segment.path.stat().st_size}, [wanted])
    assert keeper.step().done == {"archive": 1}
    assert scribe._process is None, "between steps there is none"


def test_it_does_not_outlive_who_asked_for_it(tmp_path: Path) -> None:
    segment = served(tmp_path, 1)
    command = [sys.executable, "-c", PARENT, str(segment.path), str(tmp_path / "archive")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        process = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        wait_for_the_end(process)
    os.close(process)
