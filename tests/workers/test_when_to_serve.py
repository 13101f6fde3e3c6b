"""When a new worker begins to serve: not while others answer with more than it has, and not for ever later."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.routing import plan as plans
from gateway.settings import Settings
from gateway.workers.board import Board, RunFolder, WorkerStatus, successor_slot
from gateway.workers.follower import Failure
from gateway.workers.process import Place
from gateway.workers.worker import PATIENT_TRIES, is_better_elsewhere

WORKERS, SLOT = 2, 2
FRESH = {"i1": Failure("it is away", 1, 0.0)}
TIRED = {"i1": Failure("it is away", PATIENT_TRIES, 0.0)}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    folder = RunFolder(tmp_path)
    folder.path.mkdir()
    with socket.socket() as listener:
        yield Place(SLOT, listener, 0, folder, Board(folder.board), Settings())


def serve(place: Place, slot: int, *held: str, ready: bool = True) -> None:
    """A worker in this slot that holds these incarnations."""
    place.board.clear(slot, 100 + slot)
    place.board.acknowledge(slot, 1, ready=ready)
    plans.write(place.folder.status(slot), WorkerStatus(100 + slot, 1, dict.fromkeys(held, 0)))


def waits(place: Place, missing: dict[str, Failure]) -> bool:
    return is_better_elsewhere(missing, place, WORKERS)


def test_who_lacks_nothing_begins_at_once(place: Place) -> None:
    serve(place, 1, "i1")
    assert not waits(place, {})


def test_who_lacks_what_another_one_answers_with_waits_for_some_tries(place: Place) -> None:
    serve(place, 1, "i1", "i2")
    assert waits(place, FRESH)
    assert not waits(place, TIRED)
    assert waits(place, {**TIRED, "i2": FRESH["i1"]})


@pytest.mark.parametrize(("held", "ready"), [(("i2",), True), ((), True), (("i1",), False)])
def test_nobody_waits_for_others_that_have_no_more(held: tuple[str, ...], ready: bool, place: Place) -> None:
    serve(place, 1, *held, ready=ready)
    assert not waits(place, FRESH)


def test_nobody_waits_for_what_a_process_said_that_is_gone(place: Place) -> None:
    serve(place, 1, "i1")
    place.board.clear(1, 999)
    place.board.acknowledge(1, 1, ready=True)
    assert not waits(place, FRESH)


def test_a_successor_never_takes_the_place_of_a_worker_that_has_more(place: Place) -> None:
    serve(place, successor_slot(SLOT, WORKERS), "i1")
    assert waits(place, TIRED)
    serve(place, successor_slot(SLOT, WORKERS), "i2")
    assert not waits(place, TIRED)
