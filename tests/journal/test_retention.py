"""What is kept and what goes: decisions over many made-up journals, then over real files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.journal import segment as segment_module
from gateway.journal import shelves
from gateway.journal.keeper import Keeper
from gateway.journal.reader import Locator, Segment
from gateway.journal.retention import DAY_NS, Action, File, Kind, Rules, Verb, decide
from gateway.journal.scribe import Here, Unfinished
from gateway.settings import Settings
from tests.inference.fakes import ECHO, servable
from tests.journal.rig import Gateway, document, normal

NOW = 1000 * DAY_NS
ROOMY = Rules(True, 1 << 40, 30 * DAY_NS, 1 << 40, 395 * DAY_NS)


def file(prefix: str, kind: Kind = Kind.SEGMENT, days: float = 0, size: int = 100, **others: bool) -> File:
    return File(prefix, kind, size, NOW - int(days * DAY_NS), 40 if kind == Kind.FULL else 0, **others)


def verbs(files: list[File], rules: Rules = ROOMY) -> list[tuple[str, str]]:
    return [(action.verb.value, action.file.prefix) for action in decide(files, rules, NOW)]


def test_a_segment_is_archived_once_it_is_sealed() -> None:
    assert verbs([file("a"), file("b", sealed=False), file("c", damaged=True)]) == [("archive", "a")]
    assert verbs([file("a")], ROOMY._replace(archive=False)) == []


def test_a_segment_goes_when_the_archive_has_it_and_all_have_read_it() -> None:
    both = [file("a", is_read=False), file("a", Kind.FULL)]
    assert verbs(both) == []
    assert verbs([both[0]._replace(is_read=True), both[1]]) == [("release", "a")]


def test_what_is_too_old_goes_from_the_segment_before_it_goes_from_the_archive() -> None:
    assert verbs([file("a", days=31, is_read=False), file("a", Kind.FULL, 31)]) == [("release", "a"), ("strip", "a")]


def test_inputs_go_at_their_age_and_rows_at_theirs() -> None:
    files = [file(str(days), Kind.FULL, days) for days in (400, 31, 29)] + [file("bare", Kind.BARE, 396)]
    assert verbs(files) == [("delete", "400"), ("delete", "bare"), ("strip", "31")]


def test_a_segment_that_cannot_be_archived_goes_at_the_age_of_inputs() -> None:
    old = [file("bad", days=31, damaged=True), file("good", days=31), file("open", days=31, sealed=False)]
    assert verbs(old) == [("delete", "bad"), ("archive", "good")]
    assert verbs(old, ROOMY._replace(archive=False)) == [("delete", "bad"), ("delete", "good")]


def test_without_space_what_is_there_twice_goes_first_then_the_oldest_inputs() -> None:
    files = [
        *(file("a", Kind.FULL, 3), file("b", Kind.FULL, 2), file("c", Kind.FULL, 1)),
        *(file("c", days=1, is_read=False), file("d", sealed=False)),
    ]
    assert verbs(files, ROOMY._replace(disk_bytes=500)) == []
    assert verbs(files, ROOMY._replace(disk_bytes=499)) == [("release", "c")]
    assert verbs(files, ROOMY._replace(disk_bytes=399)) == [("release", "c"), ("strip", "a")]
    assert verbs(files, ROOMY._replace(disk_bytes=0))[1:] == [("strip", "a"), ("strip", "b"), ("strip", "c")]


def test_what_lost_its_inputs_counts_against_the_space_of_rows() -> None:
    files = [file("a", Kind.BARE, 9, size=40), file("b", Kind.FULL, 5), file("c", Kind.FULL, 1)]
    tight = ROOMY._replace(disk_bytes=100, rows_disk_bytes=79)
    assert verbs(files, tight) == [("strip", "b"), ("delete", "a")]


def done(files: list[File], actions: list[Action]) -> list[File]:
    """The files after actions, as the keeper leaves them."""
    left = {(each.prefix, each.kind): each for each in files}
    for verb, each, _ in actions:
        if verb == Verb.ARCHIVE:
            left[each.prefix, Kind.FULL] = each._replace(kind=Kind.FULL, bare_size=each.size // 3)
        elif verb == Verb.STRIP:
            full = left.pop((each.prefix, Kind.FULL))
            left[each.prefix, Kind.BARE] = full._replace(kind=Kind.BARE, size=full.bare_size)
        else:
            del left[each.prefix, each.kind]
    return list(left.values())


SEGMENTS = st.builds(
    file,
    st.sampled_from("abcdefgh"),
    st.just(Kind.SEGMENT),
    st.integers(0, 500),
    st.integers(40, 200),
    sealed=st.booleans(),
    damaged=st.booleans(),
    is_read=st.booleans(),
)
ARCHIVED = st.builds(file, st.sampled_from("ijklmnop"), st.sampled_from([Kind.FULL, Kind.BARE]), st.integers(0, 500))
RULES = st.builds(
    Rules,
    st.booleans(),
    st.integers(0, 1000),
    st.integers(1, 300).map(lambda days: days * DAY_NS),
    st.integers(0, 500),
    st.integers(300, 500).map(lambda days: days * DAY_NS),
)


@given(st.lists(st.one_of(SEGMENTS, ARCHIVED), max_size=14, unique_by=lambda each: each.prefix), RULES)
def test_every_journal_comes_to_rest_within_its_space_and_age(files: list[File], rules: Rules) -> None:
    """Result: decisions end, what is open is never touched, and nothing is over its space that could be helped."""
    opened = [each for each in files if not each.sealed]
    for _ in range(6):
        actions = decide(files, rules, NOW)
        assert all(action.file.sealed for action in actions)
        files = done(files, actions)
        if not actions:
            break
    assert actions == []
    assert all(each in files for each in opened)
    bound = [each for each in files if each.kind == Kind.SEGMENT and (not each.sealed)]
    full = sum(each.size for each in files if each.kind != Kind.BARE)
    assert full <= rules.disk_bytes or full == sum(each.size for each in bound)
    assert sum(each.size for each in files if each.kind == Kind.BARE) <= rules.rows_disk_bytes
    assert all(NOW - each.opened_ns <= rules.rows_age_ns for each in files if each.kind != Kind.SEGMENT)
    assert all(NOW - each.opened_ns <= rules.inputs_age_ns for each in files if each.kind == Kind.FULL)


@given(st.lists(ARCHIVED, max_size=10, unique_by=lambda each: each.prefix), RULES)
def test_of_one_kind_the_oldest_goes_first_and_no_more_than_needed(files: list[File], rules: Rules) -> None:
    actions = decide(files, rules, NOW)
    for verb in (Verb.STRIP, Verb.DELETE):
        gone = {action.file.prefix for action in actions if action.verb == verb and "space" in action.reason}
        kind = Kind.FULL if verb == Verb.STRIP else Kind.BARE
        stay = [each for each in done(files, actions) if each.kind == kind]
        oldest = min((each.opened_ns for each in stay), default=NOW + 1)
        assert all(each.opened_ns <= oldest for each in files if each.prefix in gone)
    # Taking back the last one would be too much.
    last = [action for action in actions if action.verb == Verb.DELETE and "space" in action.reason][-1:]
    for action in last:
        left = sum(each.size for each in done(files, actions) if each.kind == Kind.BARE)
        size = action.file.bare_size if action.file.kind == Kind.FULL else action.file.size
        assert left + size > rules.rows_disk_bytes


# -- real files


def served(data: Path, seed: int, rows: int = 200) -> tuple[Gateway, list[Segment]]:
    gateway = Gateway(data, servable(contract=ECHO))
    gateway.send([[document(x=normal(rows, 2, seed))]])
    return gateway, gateway.close()


def test_the_keeper_moves_segments_to_the_archive_and_every_prediction_stays_findable(tmp_path: Path) -> None:
    """1. A sealed segment that is not read yet. 2. It is read. 3. Its inputs, then its rows, are too old.
    Result: at each step the prediction is found where it should be, and a locator that was open sees it too.
    """
    gateway, (segment,) = served(tmp_path, 1)
    (name,) = gateway.ids
    locator = Locator(tmp_path)
    assert locator.find(name).where == "segment"  # type: ignore[union-attr]
    read: set[str] = set()
    opened_ns = shelves.opened_ns(segment.spec.prefix)
    now = [opened_ns]
    settings = Settings(data=tmp_path, journal_inputs_days=2, journal_rows_days=5)
    keeper = Keeper(settings, read.__contains__, lambda: now[0])
    assert keeper.step().done == {"archive": 1}
    assert keeper.step().done == {}
    assert segment.path.exists()
    read.add(segment.spec.prefix)
    assert keeper.step().done == {"release": 1}
    assert os.listdir(tmp_path / "journal") == ["redaction.key"]
    assert locator.find(name).where == "archive"  # type: ignore[union-attr]
    assert locator.record(f"{name}#7").inputs["x"].tolist() == normal(200, 2, 1)[7].tolist()  # type: ignore[union-attr]
    now[0] = opened_ns + 3 * DAY_NS
    assert keeper.step().done == {"strip": 1}
    assert Locator(tmp_path).record(f"{name}#7").inputs == {}  # type: ignore[union-attr]
    now[0] = opened_ns + 6 * DAY_NS
    assert keeper.step().done == {"delete": 1}
    assert locator.find(name) is None
    assert keeper.step() == ({}, {}, [])
    assert keeper.totals == {"archive": 1, "release": 1, "strip": 1, "delete": 1, "troubles": 0}


def test_a_segment_that_is_written_is_left_alone(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, servable(contract=ECHO))
    gateway.send([[document(x=normal(3, 2))]])
    keeper = Keeper(Settings(data=tmp_path, journal_disk_bytes=16 << 20))
    assert keeper.step().done == {}
    gateway.close()
    assert keeper.step().done == {"archive": 1}


def test_a_segment_that_is_being_sealed_is_left_until_its_writer_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The keeper looks between the mark that a segment is sealed and the smaller file that takes its place.
    Result: it waits; afterwards there is one file, archived once.
    """
    gateway = Gateway(tmp_path, servable(contract=ECHO))
    gateway.send([[document(x=normal(3, 2))]])
    keeper = Keeper(Settings(data=tmp_path))
    shrink = segment_module.shrink
    seen = []

    def watched(path: Path, *others: Any) -> None:
        assert Segment.open(path).sealed
        seen.append(keeper.step().done)
        shrink(path, *others)

    monkeypatch.setattr(segment_module, "shrink", watched)
    gateway.close()
    assert seen == [{}]
    assert keeper.step().done == {"archive": 1}
    assert keeper.step().done == {"release": 1}
    assert keeper.step().done == {}


class Busy(Here):
    """No core has time for an archive that is not in a hurry."""

    def archive(self, segment: Path, folder: Path, *, hurry: bool = False) -> tuple[str, ...]:
        if not hurry:
            raise Unfinished
        return super().archive(segment, folder)


def test_while_the_cores_are_busy_segments_wait_for_their_archive_and_nothing_else_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three segments the archive has one, before no core is idle any more. That one goes. Where segments take half
    of the space, the others are archived at once.
    """
    caplog.set_level("INFO", "headgate.journal")
    settings = Settings(data=tmp_path)
    served(tmp_path, 0, 1000)
    assert Keeper(settings).step().done == {"archive": 1}
    for seed in (1, 2):
        served(tmp_path, seed, 1000)
    keeper = Keeper(settings, scribe=Busy())
    first = keeper.step()
    assert (first.done, first.troubles) == ({"release": 1}, [])
    waits = [record for record in caplog.records if record.message == "journal: archiving waits"]
    assert len(waits) == 1, "one was tried, the other waited behind it"
    keeper._rules = keeper._rules._replace(disk_bytes=2 * keeper.step().held["segment"] + 1)
    assert keeper.step().done == {}
    keeper._rules = keeper._rules._replace(disk_bytes=2 * keeper.step().held["segment"])
    assert keeper.step().done == {"archive": 2}


def test_a_damaged_segment_is_told_and_kept_while_there_is_space(tmp_path: Path) -> None:
    _, (segment,) = served(tmp_path, 2)
    data = bytearray(segment.path.read_bytes())
    data[next(column.offset for column in segment.spec.columns if column.group == "input") + 5] ^= 1
    segment.path.write_bytes(data)
    keeper = Keeper(Settings(data=tmp_path))
    first = keeper.step()
    assert first.done == {}
    assert len(first.troubles) == 1
    assert "do not fit their checksum" in first.troubles[0]
    assert keeper.step().troubles == []
    assert segment.path.exists()
    later = Keeper(Settings(data=tmp_path, journal_inputs_days=1), now_ns=lambda: 1 << 62)
    later.step()
    assert later.step().done == {"delete": 1}
    assert not segment.path.exists()


def test_a_full_archive_sheds_inputs_then_rows_and_stays_readable(tmp_path: Path) -> None:
    for seed in range(4):
        served(tmp_path, seed, 1000)
    keeper = Keeper(Settings(data=tmp_path))
    keeper.step()
    keeper.step()
    held = keeper.step().held
    places = shelves.places(tmp_path / "archive")
    assert len(places) == 4
    one = held["full"] // 4
    keeper._rules = keeper._rules._replace(disk_bytes=int(one * 2.5))
    assert keeper.step().done == {"strip": 2}
    assert keeper.step().done == {}
    table = pd.read_parquet(tmp_path / "archive", columns=["prediction_id", "input_x", "status"])
    assert len(table) == 4000
    assert table["input_x"].isna().sum() == 2000
    bare = keeper.step().held["bare"]
    keeper._rules = keeper._rules._replace(rows_disk_bytes=int(bare * 0.7))
    assert keeper.step().done == {"delete": 1}
    assert [place.prefix for place in shelves.places(tmp_path / "archive")] == [each.prefix for each in places[1:]]


def test_a_step_ends_when_it_is_told_to(tmp_path: Path) -> None:
    for seed in range(3):
        served(tmp_path, seed)
    asked = iter([False, True])
    assert Keeper(Settings(data=tmp_path)).step(lambda: next(asked)).done == {"archive": 1}
