"""Trials and who watches them, with real processes: what they may know, and that each ends with who asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.errors import HeadgateError, LoadUnavailable
from gateway.models.quarantine import Quarantine
from tests.models import crafted
from tests.models.trying import ENDLESS, TINY, job_for, put, wait_for
from tests.processes import descendants, is_alive, nurseries, parent_of, trials

pytestmark = pytest.mark.usefixtures("nothing_is_left")


class Trying:
    """A version that is tried in a thread, because its trial does not end by itself."""

    def __init__(self, quarantine: Quarantine, folder: Path) -> None:
        self.errors: list[HeadgateError] = []
        self._thread = threading.Thread(target=self._work, args=(quarantine, folder))
        self._thread.start()

    def _work(self, quarantine: Quarantine, folder: Path) -> None:
        try:
            quarantine.try_version(job_for(folder), 60)
        except HeadgateError as error:
            self.errors.append(error)

    def ends(self) -> HeadgateError:
        self._thread.join(20)
        assert not self._thread.is_alive()
        (error,) = self.errors
        return error


@pytest.mark.faults
def test_a_trial_knows_no_secrets_and_holds_nothing_of_who_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEADGATE_ADMIN_KEY", "AWS_SECRET_ACCESS_KEY", "HOME", "SSH_AUTH_SOCK"):
        monkeypatch.setenv(name, "very-secret")
    quarantine = Quarantine()
    trying = Trying(quarantine, put(tmp_path, crafted.looping(ENDLESS)))
    try:
        (child,) = wait_for(lambda: trials(os.getpid()))
        pairs = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        assert {pair.partition(b"=")[0] for pair in pairs if pair} <= {
            b"PATH",
            b"LC_ALL",
            b"PYTHONPATH",
            b"LD_LIBRARY_PATH",
        }
        wait_for(lambda: os.getsid(child) == child)
        # Nothing to read but emptiness, two pipes of its warden, and its own model while it is being read.
        held = wait_for(lambda: descriptors(child) if len(descriptors(child)) <= 4 else None)
        assert held.pop("0") == "/dev/null"
        assert held.pop("1") == held.pop("2")
        assert [target.partition(":")[0] for target in held.values()] == ["pipe"]
    finally:
        quarantine.close()
    assert trying.ends().message == "the server is shutting down"


def descriptors(pid: int) -> dict[str, str]:
    """What the descriptors of a process lead to."""
    folder = Path(f"/proc/{pid}/fd")
    found = {}
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # it has been closed meanwhile
            found[name] = os.readlink(folder / name)
    return found


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["trial", "warden", "nursery"])
def test_a_trial_that_is_killed_from_outside_is_tried_again(tmp_path: Path, victim: str) -> None:
    quarantine = Quarantine()
    trying = Trying(quarantine, put(tmp_path, crafted.looping(ENDLESS)))
    try:
        (child,) = wait_for(lambda: trials(os.getpid()))
        warden = parent_of(child)
        killed = {"trial": child, "warden": warden, "nursery": parent_of(warden)}[victim]
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: not is_alive(killed))
        if victim != "nursery":
            error = trying.ends()
            assert isinstance(error, LoadUnavailable)
            assert error.message == "the process that tried it was killed from outside"
            wait_for(lambda: not is_alive(child))
        # The trial of a dead nursery goes on, and the next one has another.
        assert quarantine.try_version(job_for(TINY / "1"), 30).verified
    finally:
        quarantine.close()
    wait_for(lambda: not is_alive(child))


@pytest.mark.faults
def test_closing_ends_the_trials_of_all_threads_and_lets_no_new_one_begin(tmp_path: Path) -> None:
    folder = put(tmp_path, crafted.looping(ENDLESS))
    quarantine = Quarantine()
    attempts = [Trying(quarantine, folder) for _ in range(2)]
    wait_for(lambda: len(trials(os.getpid())) == 2)
    quarantine.close()
    assert [type(each.ends()) for each in attempts] == [LoadUnavailable, LoadUnavailable]
    wait_for(lambda: not trials(os.getpid()))
    with pytest.raises(LoadUnavailable, match="shutting down"):
        quarantine.try_version(job_for(folder), 60)


@pytest.mark.faults
def test_a_trial_does_not_outlive_the_process_that_asked_for_it(tmp_path: Path) -> None:
    folder = put(tmp_path, crafted.looping(ENDLESS))
    program = (
        "import sys\n"
        "from gateway.models.quarantine import Job, Quarantine\n"
        "from gateway.models.options import SessionOptions\n"
        "Quarantine().try_version(Job(sys.argv[1], 'm', 1, SessionOptions(), 1 << 20, 1 << 28, True), 60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], cwd=Path(__file__).parents[2]) as parent:
        (child,) = wait_for(lambda: trials(parent.pid))
        left = [child, *nurseries(parent.pid)]
        parent.kill()
    assert len(left) == 3
    wait_for(lambda: not any(map(is_alive, left)))


def test_versions_that_come_together_share_a_nursery_and_it_ends_when_no_more_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quarantine, known = Quarantine(), set(nurseries(os.getpid()))

    def nursery() -> int:
        assert quarantine.try_version(job_for(TINY / "1"), 30).verified
        (found,) = wait_for(lambda: new if len(new := set(nurseries(os.getpid())) - known) == 1 else None)
        return int(found)

    first = nursery()
    monkeypatch.setattr("gateway.models.quarantine.IDLE_S", 0.01)
    assert quarantine.try_version(job_for(TINY / "1"), 30).verified
    wait_for(lambda: not is_alive(first))
    monkeypatch.undo()
    second = nursery()
    assert nursery() == second != first
    quarantine.close()
    assert not is_alive(second)


@pytest.mark.faults
def test_the_time_that_trials_took_is_counted_also_of_those_that_were_given_up(tmp_path: Path) -> None:
    def children_s() -> float:
        times = os.times()
        return times.children_user + times.children_system

    seen_s, over = [0.0], threading.Event()

    def watch() -> None:
        """How long the trial has had a core, which is little where others want it."""
        while not over.wait(0.05):
            for pid in trials(os.getpid()):
                with suppress(OSError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    seen_s.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))

    before, quarantine = children_s(), Quarantine()
    watching = threading.Thread(target=watch)
    watching.start()
    with pytest.raises(LoadUnavailable, match="not ready within 2 s"):
        quarantine.try_version(job_for(put(tmp_path, crafted.looping(ENDLESS))), 2)
    over.set()
    watching.join()
    assert quarantine._nursery is not None
    nursery = quarantine._nursery[1].pid
    wait_for(lambda: descendants(nursery) == [nursery])
    quarantine.close()
    assert children_s() - before >= max(seen_s) > 0
