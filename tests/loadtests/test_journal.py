"""The journal's own benchmark runs, and what it measures is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.journal.reader import Segment, segments
from loadtests import journal, made, restart
from loadtests.journal import Measured
from loadtests.models import write
from loadtests.processes import Cores

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_journal_is_made_as_a_server_would_have_written_it(tmp_path: Path) -> None:
    write(tmp_path / "models", EXAMPLES, ("tiny",))
    whole = made.make(tmp_path / "data", tmp_path / "models", "tiny", 5000)
    opened = [Segment.open(path) for path in segments(tmp_path / "data" / "journal")]
    assert sum(segment.rows() for segment in opened) == sum(whole.batches) == whole.rows == 5000
    assert all(segment.sealed and not segment.verify() for segment in opened)
    replayed = journal.replaying(whole, tmp_path / "models", "segments")
    assert replayed.ratio is not None
    assert replayed.value > 0


@pytest.mark.faults
def test_a_server_is_started_on_a_journal_whose_writer_was_killed(tmp_path: Path) -> None:
    """Result: it answers, and everything that was left is sealed and whole."""
    write(tmp_path / "models", EXAMPLES, ("tiny",))
    size = restart.leave(tmp_path / "models", tmp_path / "data", 33 << 20)
    assert size > 33 << 20
    found = restart.start(tmp_path / "models", tmp_path / "data", tmp_path / "log", Cores(frozenset(), frozenset()))
    assert 0 < found.ready_s <= found.sealed_s
    left = [Segment.open(path) for path in segments(tmp_path / "data" / "journal")]
    assert sum(segment.rows() for segment in left) > 100_000
    assert all(segment.sealed and not segment.verify() for segment in left)


def test_what_is_printed_is_what_is_judged() -> None:
    """The first round is better than the median of all, which is below."""
    kept = Measured("a", 8.0, "rows/s", 10.0, hold_ratio=0.8)
    low = Measured("b", 5.0, "rows/s", hold=4.0)
    long = Measured("c", 4.0, "s", 2.0, most=5.0)
    free = Measured("d", 1.0, "rows/s")
    rounds = [[kept, low, long, free]] + [[kept, low._replace(value=3.0), long._replace(value=6.0), free]] * 2
    rows = journal.middle(rounds)
    assert [each.verdict for each in rows] == ["held", "BELOW", "BELOW", ""]
    lines = [line.split() for line in journal.table(rows)]
    assert lines[1][:5] == ["a", "8", "10", "0.80", "held"]
    assert lines[2][:3] == ["b", "3", "BELOW"]
    assert lines[3][:5] == ["c", "6.00", "2.00", "3.00", "BELOW"]
    assert [each.held for each in rounds[0]] == [True] * 4
