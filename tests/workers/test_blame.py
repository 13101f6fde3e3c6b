"""From crashes of workers to what is done about it: how many, of what, within which time."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.control.blame import LOAD_DEATHS, PAYLOAD_DEATHS, RUN_DEATHS, SUSPECT_S, WINDOW_S, Blame, withdraw
from gateway.workers.notes import Culprit, Death, VersionKey, append
from tests.models.fakes import Lifecycle, files_of

KEY = VersionKey("m", 2, "2a")
OTHER = VersionKey("other", 1, "1a")


class Rig:
    """The file of deaths, and who reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blame = self.anew()

    def anew(self) -> Blame:
        """As the next control process finds it."""
        return Blame(self.folder / "deaths", self.folder / "blocked.json")

    def crash(self, at_s: float, *culprits: Culprit, cause: str = "SIGSEGV") -> None:
        append(self.folder / "deaths", Death(at_s, 1, cause, culprits))
        assert self.blame.look()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def running(*digests: int, key: VersionKey = KEY) -> Culprit:
    return Culprit(key, loading=False, digests=digests)


def loading(key: VersionKey = KEY) -> Culprit:
    return Culprit(key, loading=True)


def test_without_deaths_nobody_is_to_blame(rig: Rig) -> None:
    assert not rig.blame.look()
    assert rig.blame.reason(KEY) == ""
    assert not rig.blame.is_suspect(KEY, 0.0)
    assert rig.blame.refused(KEY) == ()


@pytest.mark.parametrize(
    ("culprits", "word"),
    [([running(), *map(running, range(RUN_DEATHS - 1))], "running"), ([loading()] * LOAD_DEATHS, "loading")],
)
def test_so_many_crashes_within_the_window_block_a_version_and_one_less_does_not(
    culprits: list[Culprit], word: str, rig: Rig
) -> None:
    limit = len(culprits)
    for count in range(limit - 1):
        rig.crash(float(count), culprits[count])
    assert rig.blame.reason(KEY) == ""
    rig.crash(10.0, culprits[-1], cause="SIGFPE")
    assert rig.blame.reason(KEY).startswith(f"{limit} workers crashed (SIGFPE, SIGSEGV) while {word} it")
    assert rig.blame.reason(OTHER) == ""
    assert rig.blame.reason(VersionKey("m", 2, "new files")) == ""


def test_crashes_that_are_far_apart_block_nothing(rig: Rig) -> None:
    for count in range(3 * RUN_DEATHS):
        rig.crash(count * WINDOW_S / (RUN_DEATHS - 1), running(), loading(OTHER))
        if count % 2:
            assert rig.blame.reason(KEY) == ""
    assert rig.blame.reason(KEY) == ""


def test_a_version_is_suspect_for_a_while_after_a_crash_while_it_ran(rig: Rig) -> None:
    rig.crash(100.0, running(), loading(OTHER))
    assert rig.blame.is_suspect(KEY, 101.0)
    assert not rig.blame.is_suspect(OTHER, 101.0)
    assert not rig.blame.is_suspect(KEY, 100.0 + SUSPECT_S)


def test_a_row_of_several_crashes_is_refused_and_does_not_count_against_its_version_any_more(rig: Rig) -> None:
    """
    1. The same row crashes workers over and over, from the second time on with its digest known.
    2. Result: it is refused after two crashes that show it, and however often it crashes workers the version stays.
    """
    rig.crash(0.0, running())
    rig.crash(1.0, running(7))
    assert rig.blame.refused(KEY) == ()
    for count in range(2 * RUN_DEATHS):
        rig.crash(2.0 + count, running(7))
        assert rig.blame.refused(KEY) == (7,)
    assert rig.blame.reason(KEY) == ""
    assert rig.blame.refused(OTHER) == ()
    assert PAYLOAD_DEATHS == 2


def test_workers_that_all_die_of_one_row_before_any_has_heard_of_it_do_not_block_its_version(rig: Rig) -> None:
    for _ in range(RUN_DEATHS):
        rig.crash(0.0, running())
    for count in range(PAYLOAD_DEATHS + 1):
        rig.crash(1.0 + count, running(7))
        assert rig.blame.reason(KEY) == ""
    assert rig.blame.refused(KEY) == (7,)


def test_a_version_whose_rows_nobody_ever_notes_is_blocked_in_the_end(rig: Rig) -> None:
    for count in range(2 * RUN_DEATHS - 1):
        assert rig.blame.reason(KEY) == ""
        rig.crash(float(count), running())
    assert rig.blame.reason(KEY).startswith(f"{2 * RUN_DEATHS - 1} workers crashed")


def test_different_rows_block_their_version(rig: Rig) -> None:
    for count in range(RUN_DEATHS):
        rig.crash(float(count), running(count))
    assert rig.blame.refused(KEY) == ()
    assert rig.blame.reason(KEY)


def test_what_was_blocked_stays_so_for_the_next_server_until_its_files_change(rig: Rig, tmp_path: Path) -> None:
    for count in range(LOAD_DEATHS):
        rig.crash(float(count), loading())
    (tmp_path / "deaths").unlink()
    found = rig.anew()
    assert found.reason(KEY) == rig.blame.reason(KEY) != ""
    newer = VersionKey("m", 2, "2b")
    for count in range(LOAD_DEATHS):
        append(tmp_path / "deaths", Death(100.0 + count, 1, "hung", (loading(newer),)))
    found.look()
    assert found.reason(newer)
    assert found.reason(KEY) == "", "one entry for each version, or the file would grow for ever"


@pytest.mark.parametrize(
    ("model", "version", "pardoned"), [("m", 2, True), ("m", None, True), ("m", 3, False), ("x", 2, False)]
)
def test_a_pardon_wipes_the_slate_clean_for_the_next_control_process_too(
    model: str, version: int | None, pardoned: bool, rig: Rig
) -> None:
    for count in range(RUN_DEATHS):
        rig.crash(float(count), running(count))
    rig.blame.pardon(model, version)
    again = rig.anew()
    again.look()
    for blame in (rig.blame, again):
        assert (blame.reason(KEY) == "") == pardoned
        assert blame.is_suspect(KEY, 5.0) != pardoned
    for count in range(RUN_DEATHS - 1):
        rig.crash(10.0 + count, running(count))
    assert (rig.blame.reason(KEY) == "") == pardoned


def test_a_damaged_file_of_blocked_versions_is_named_and_nothing_is_blocked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "blocked.json").write_text("{")
    assert Blame(tmp_path / "deaths", tmp_path / "blocked.json").reason(KEY) == ""
    assert [record.event for record in caplog.records] == ["blocked-lost"]  # type: ignore[attr-defined]


def test_a_blocked_version_drains_at_once_with_the_reason_and_the_one_before_it_comes_back() -> None:
    life = Lifecycle()
    life.put(1, 2)
    life.settle()
    assert life.ready() == [2]
    withdraw(life.manager, [(VersionKey("m", 2, files_of(2).fingerprint), "it crashes workers"), (OTHER, "unknown")])
    life.step()
    assert life.ready() == []
    assert life.loader.withdrawn == [2]
    life.settle()
    assert life.ready() == [1]
    assert life.state(2) == ("UNAVAILABLE", "it crashes workers")
    life.put(1, files_of(2, "b"))
    life.settle()
    assert life.ready() == [2], "new files are tried"


def test_two_that_were_at_work_in_every_crash_are_both_to_blame(rig: Rig) -> None:
    for count in range(RUN_DEATHS):
        rig.crash(float(count), running(count), running(count, key=OTHER))
    assert rig.blame.reason(KEY)
    assert rig.blame.reason(OTHER)
