"""The journal's own benchmark runs, and what it measures is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.journal.reader import Segment, segments
from loadtests import journal
from loadtests.journal import Measured
from loadtests.models import write

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_journal_is_made_as_a_server_would_have_written_it(tmp_path: Path) -> None:
    write(tmp_path / "models", EXAMPLES, ("tiny",))
    made = journal.make(tmp_path / "data", tmp_path / "models", "tiny", 5000)
    opened = [Segment.open(path) for path in segments(tmp_path / "data" / "journal")]
    assert sum(segment.rows() for segment in opened) == sum(made.batches) == made.rows == 5000
    assert all(segment.sealed and not segment.verify() for segment in opened)
    replayed = journal.replaying(made, tmp_path / "models", "segments")
    assert replayed.ratio is not None
    assert replayed.value > 0


def test_the_table_tells_what_is_held(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Measured("a", 8.0, "rows/s", 10.0, hold_ratio=0.8), Measured("b", 3.0, "rows/s", hold=4.0)]
    lines = journal.table([rows, [rows[0]._replace(value=9.0), rows[1]], [rows[0]._replace(value=1.0), rows[1]]])
    assert lines[1].split()[:5] == ["a", "8", "10", "0.80", "held"]
    assert lines[2].split()[:3] == ["b", "3", "BELOW"]
    assert not rows[1].held
