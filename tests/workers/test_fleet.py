"""The control process's view of its workers: when a version counts as loaded everywhere, and when it is given up."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from gateway.control.blame import LOAD_DEATHS, Blame
from gateway.control.fleet import Fleet, FleetCollector
from gateway.errors import LoadRejected, LoadUnavailable
from gateway.models.config import ModelConfig
from gateway.models.manifest import Lineage
from gateway.routing import plan as plans
from gateway.routing.plan import PlannedVersion
from gateway.workers.board import Board, RunFolder, WorkerStatus, successor_slot
from gateway.workers.notes import Culprit, Death, VersionKey, append
from tests.models.fakes import report

VERSION = PlannedVersion("i1", 1, "m/1", "f" * 16, False, ModelConfig(), report(), Lineage(), serves=False)
KEY = VersionKey("m", 1, "f" * 16)


class Rig:
    """Two workers that say what the test has them say, and a fleet whose `prepare` runs in a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = RunFolder(folder)
        self.folder.path.mkdir()
        self.board = Board(self.folder.board)
        self.blame = Blame(self.folder.deaths, folder / "blocked.json")
        self.fleet = Fleet(self.folder, self.board, 2, 20.0, self.blame)
        self.threads = ThreadPoolExecutor(1)
        for slot in (1, 2):
            self.begin(slot)

    def begin(self, slot: int) -> None:
        """A process starts in a slot."""
        self.board.clear(slot, 100 + slot)

    def say(self, slot: int, *held: str, failed: dict[str, str] | None = None) -> None:
        """The worker in a slot follows the present plan and reports."""
        generation = self.fleet.plan.generation
        status = WorkerStatus(100 + slot, generation, dict.fromkeys(held, 0), failed or {})
        plans.write(self.folder.status(slot), status)
        self.board.acknowledge(slot, generation, ready=True)

    def prepare(self) -> Future[None]:
        """Begin to prepare the version, and wait until the plan lists it."""
        future = self.threads.submit(self.fleet.prepare, "m", VERSION)
        while self.board.generation == 0:
            pass
        return future

    def crash(self) -> None:
        append(self.folder.deaths, Death(1.0, 1, "SIGSEGV", (Culprit(KEY, loading=True),)))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.fleet.close()
    made.threads.shutdown()


def planned(rig: Rig) -> list[str]:
    found = plans.read(rig.folder.plan).models
    return [each.incarnation for each in found["m"].versions] if "m" in found else []


def test_a_version_is_prepared_when_every_worker_holds_it_and_not_before(rig: Rig) -> None:
    future = rig.prepare()
    assert planned(rig) == ["i1"]
    rig.say(1, "i1")
    rig.say(2)
    with pytest.raises(TimeoutError):
        future.result(0.1)
    rig.say(2, "i1")
    future.result(5)


def test_a_worker_that_retires_is_not_waited_for_and_its_successor_is(rig: Rig) -> None:
    other = successor_slot(1, 2)
    rig.begin(other)
    rig.board.retire(1)
    future = rig.prepare()
    rig.say(2, "i1")
    with pytest.raises(TimeoutError):
        future.result(0.1)
    rig.say(other, "i1")
    future.result(5)


def test_what_a_process_said_that_is_gone_does_not_count_for_the_one_in_its_place(rig: Rig) -> None:
    future = rig.prepare()
    rig.say(1, "i1")
    rig.board.clear(1, 999)
    rig.say(2, "i1")
    with pytest.raises(TimeoutError):
        future.result(0.1)


def test_a_version_that_a_worker_cannot_load_is_rejected_with_its_words(rig: Rig) -> None:
    future = rig.prepare()
    rig.say(1, failed={"i1": "no such operator"})
    with pytest.raises(LoadRejected, match="no such operator"):
        future.result(5)
    rig.fleet.serve({}, settled=True)
    assert planned(rig) == []


def test_a_crash_while_it_is_loaded_ends_the_attempt_and_enough_of_them_block_it(rig: Rig) -> None:
    for count in range(LOAD_DEATHS):
        future = rig.threads.submit(rig.fleet.prepare, "m", VERSION)
        while "i1" not in planned(rig):
            assert not future.done()
        rig.crash()
        expected = LoadUnavailable if count < LOAD_DEATHS - 1 else LoadRejected
        with pytest.raises(expected):
            future.result(5)
        rig.fleet.serve({}, settled=count % 2 == 0)
        assert planned(rig) == []
    with pytest.raises(LoadRejected, match="workers crashed"):
        rig.fleet.raise_if_blocked(KEY)


def test_a_load_ends_with_the_server(rig: Rig) -> None:
    future = rig.prepare()
    rig.fleet.close()
    with pytest.raises(LoadUnavailable, match="shutting down"):
        future.result(5)


def test_a_version_that_answers_and_that_workers_could_not_load_is_counted(rig: Rig) -> None:
    serving = msgspec.structs.replace(VERSION, serves=True)
    models = {"m": plans.PlannedModel([serving, msgspec.structs.replace(VERSION, incarnation="i2", version=2)], {}, [])}
    plans.write(rig.folder.plan, plans.Plan(models, True, 1))
    fleet = Fleet(rig.folder, rig.board, 2, 20.0, rig.blame)
    for failed, missing in (({}, 0), ({"i1": "it is away", "i2": "being prepared"}, 1)):
        rig.say(1, "i1")
        rig.say(2, failed=failed)
        assert fleet.lacking() == {("m", 1): missing}
        [family] = FleetCollector(fleet).collect()
        assert [(sample.labels, sample.value) for sample in family.samples] == [
            ({"model": "m", "version": "1"}, missing)
        ]
    rig.begin(2)
    rig.board.clear(2, 555)
    assert fleet.lacking() == {("m", 1): 0}, "the one that said so is gone"
