"""What other libraries say beside the alarms: which chunks they look at, and how that is told."""

from __future__ import annotations

import numpy as np
import pytest

from loadtests import alarm_beside
from loadtests.alarm_beside import CHUNK, Looked, Streams
from loadtests.alarm_peers import PEERS, spread
from loadtests.environments import NotMade


@pytest.mark.parametrize(("chunks", "most"), [(5, 12), (12, 12), (50, 12), (208, 3)])
def test_chunks_are_spread_evenly_from_the_first_to_the_last(chunks: int, most: int) -> None:
    found = spread(chunks, most)
    assert (found[0], found[-1]) == (0, chunks - 1)
    assert len(found) == min(chunks, most)
    assert max(np.diff(found)) - min(np.diff(found)) <= 1


def test_alarms_are_counted_for_each_part_of_a_stream() -> None:
    looked = Looked({0: False, 2: True, 5: True, 9: True}, breaks=(5 * CHUNK,))
    assert str(looked) == "1 of 2, 2 of 2"
    assert str(Looked({0: True, 9: False})) == "1 of 2"


def test_a_library_that_is_not_there_is_said_to_be_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise NotMade("the index is out of reach")

    monkeypatch.setattr(alarm_beside, "ensure", fail)
    with Streams(quick=True) as streams:
        for peer in PEERS:
            assert streams.ask(peer, "s", lambda: ({}, {})) == "not measured"
    assert "out of reach" in capsys.readouterr().err


def test_a_stream_is_looked_at_once_however_often_it_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []

    def look(self: Streams, peer: str, stream: str, columns: object) -> dict[int, list[str]]:
        looks.append(peer)
        return {0: ["Share of Drifted Columns: Less 0.500"], 1: ["Value Drift for column x"], 2: []}

    monkeypatch.setattr(Streams, "_look", look)
    with Streams(quick=False) as streams:
        whole = streams.ask("evidently-drift", "s", dict, counts=lambda name: name.startswith(alarm_beside.WHOLE))
        column = streams.ask("evidently-drift", "s", dict, counts=lambda name: not name.startswith(alarm_beside.WHOLE))
    assert (whole, column, looks) == ("1 of 3", "1 of 3", ["evidently-drift"])
