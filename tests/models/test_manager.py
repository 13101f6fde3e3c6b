"""The manager, stepped by hand: versions on their way up, from one to the next, and on their way out."""

from __future__ import annotations

import asyncio
import errno
import logging

import pytest

from gateway.errors import NotReady, UnknownModel, UnknownVersion
from gateway.models.config import SessionRule
from gateway.models.repository import Repository
from tests.models.fakes import FakeLoader, Lifecycle, config_of, files_of
from tests.models.stepping import BROKEN, serving

# On the way up


def test_a_version_is_found_tried_loaded_and_then_ready() -> None:
    life = Lifecycle()
    life.put(1)
    life.step(2)
    assert life.state(1) == ("LOADING", "in quarantine")
    life.jobs.run()
    life.step()
    assert life.state(1) == ("LOADING", "passed quarantine")
    assert life.ready() == []
    life.jobs.run()
    life.step()
    assert life.state(1) == ("READY", "")
    assert life.ready() == [1]


def test_a_step_waits_for_nothing() -> None:
    life = Lifecycle()
    life.put(1)
    life.step(100)
    assert life.state(1) == ("LOADING", "in quarantine")
    assert len(life.jobs.jobs) == 1


def test_incomplete_files_are_waited_for_and_said_to_be() -> None:
    life = Lifecycle()
    life.put(files_of(1, waiting="model.onnx has 3 of 5 bytes"))
    life.settle()
    assert life.state(1) == ("UNAVAILABLE", "waiting for its files: model.onnx has 3 of 5 bytes")
    assert life.loader.checks == []
    life.put(1)
    life.settle()
    assert life.ready() == [1]


def test_a_newest_version_whose_files_still_arrive_does_not_keep_the_one_before_it_out() -> None:
    life = Lifecycle()
    life.put(1, files_of(2, waiting="model.onnx has 3 of 5 bytes"))
    life.settle()
    assert life.ready() == [1]


def test_no_model_is_called_unknown_before_the_folder_was_read() -> None:
    life = Lifecycle()
    life.source.error = PermissionError(errno.EACCES, "Permission denied")
    repository = Repository(life.manager)
    life.step(3)
    with pytest.raises(NotReady, match="the server is starting") as caught:
        life.table.find("m", None)
    assert caught.value.headers == {"Retry-After": "1"}
    with pytest.raises(NotReady, match="the server is starting"):
        asyncio.run(repository.move_alias("m", "champion", 1))
    assert not repository.settled
    life.source.error = None
    life.step(2)
    with pytest.raises(UnknownModel):
        life.table.find("m", None)
    with pytest.raises(UnknownModel):
        asyncio.run(repository.move_alias("m", "champion", 1))
    assert repository.settled


def test_a_folder_that_cannot_be_read_any_more_makes_no_model_start_again() -> None:
    life = Lifecycle()
    life.step(2)
    life.source.error = PermissionError(errno.EACCES, "Permission denied")
    life.step(2)
    with pytest.raises(UnknownModel):
        life.table.find("m", None)


def test_the_folder_is_looked_at_once_a_poll() -> None:
    life = Lifecycle()
    life.manager.step(0.0)
    for tenth in range(1, 30):
        life.manager.step(tenth / 10)
    assert life.manager.scans == 3


def test_a_look_that_is_asked_for_begins_at_the_next_step_and_is_told_from_one_that_began_before() -> None:
    life = Lifecycle()
    life.manager.step(0.0)
    goal = life.manager.scan_soon()
    life.manager.step(0.1)
    assert life.manager.scans < goal
    life.manager.step(0.2)
    assert life.manager.scans == goal


# From one version to the next


def test_the_old_version_serves_until_the_new_one_is_ready() -> None:
    life = serving(1)
    life.put(1, 2)
    life.step(2)
    assert (life.ready(), life.state(2)) == ([1], ("LOADING", "in quarantine"))
    life.jobs.run()
    life.step(2)
    assert (life.ready(), life.state(2)) == ([1], ("LOADING", "passed quarantine"))
    life.jobs.run()
    life.step()
    assert life.ready() == [2]
    life.step()
    assert life.state(1) == ("UNAVAILABLE", "not wanted by the version policy")


def test_a_failed_newest_version_leaves_the_old_one_serving_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    life = serving(1, loader=FakeLoader(lambda _, version: BROKEN if version == 2 else None))
    life.put(1, 2)
    with caplog.at_level(logging.INFO):
        life.settle()
    assert life.ready() == [1]
    assert life.state(2) == ("UNAVAILABLE", "it is broken")
    (line,) = [vars(record) for record in caplog.records if vars(record).get("event") == "version-failed"]
    assert (line["model"], line["version"], line["reason"]) == ("m", 2, "it is broken")


def test_of_two_wanted_versions_neither_goes_for_a_third_that_fails() -> None:
    life = Lifecycle(FakeLoader(lambda _, version: BROKEN if version == 3 else None))
    life.put(1, 2, config=config_of(count=2))
    life.settle()
    life.put(1, 2, 3, config=config_of(count=2))
    life.step(2)
    assert life.ready() == [1, 2]
    life.settle()
    assert life.ready() == [1, 2]
    assert life.loader.checks == [("m", 2), ("m", 1), ("m", 3)]


def test_a_version_that_fails_only_when_it_is_loaded_has_failed() -> None:
    life = serving(1, loader=FakeLoader(loaded=lambda _, version: BROKEN if version == 2 else None))
    life.put(1, 2)
    life.settle()
    assert (life.ready(), life.state(2)) == ([1], ("UNAVAILABLE", "it is broken"))


def test_versions_of_one_model_come_one_after_the_other_and_models_at_once() -> None:
    life = Lifecycle()
    life.put(1, 2, 3, config=config_of("all"))
    life.put(7, model="n")
    life.step(2)
    assert sorted((job[2][0], job[2][1].version) for job in life.jobs.jobs) == [("m", 3), ("n", 7)]
    life.settle()
    assert (life.ready("m"), life.ready("n")) == ([1, 2, 3], [7])
    assert [version for model, version in life.loader.checks if model == "m"] == [3, 2, 1]


# Changed files


def test_changed_files_are_loaded_beside_the_old_ones_which_serve_until_then() -> None:
    life = serving(1)
    old = life.table.find("m", "1")
    life.put(files_of(1, "b"))
    life.step(2)
    life.jobs.run()
    life.step()
    assert life.table.find("m", "1") is old
    life.jobs.run()
    life.step()
    new = life.table.find("m", "1")
    assert new is not old
    assert new.report.sha256 == "1b"
    assert new.counters is old.counters


def test_an_old_incarnation_with_requests_in_flight_is_kept_until_they_are_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    life = serving(1)
    with life.request() as held:
        life.put(files_of(1, "b"))
        life.settle()
        assert life.table.find("m", None) is not held
        assert life.manager.entries["m"].records[1].draining == [held]
        assert "version released" not in caplog.messages
    life.step()
    assert life.manager.entries["m"].records[1].draining == []
    assert "version released" in caplog.messages


def test_a_failed_reload_keeps_serving_what_it_served_and_says_why() -> None:
    life = serving(1)
    old = life.table.find("m", "1")
    life.loader.checked = lambda *_: BROKEN
    life.put(files_of(1, "b"))
    life.settle()
    assert life.table.find("m", "1") is old
    assert life.state(1) == ("READY", "its files changed, but the new ones failed to load: it is broken")
    life.put(1)
    life.settle()
    assert life.table.find("m", "1") is old
    assert life.state(1) == ("READY", "")


def test_files_that_change_during_their_trial_are_tried_again() -> None:
    life = Lifecycle()
    life.put(1)
    life.step(2)
    life.put(files_of(1, "b"))
    life.step(2)
    assert len(life.jobs.jobs) == 1
    life.settle()
    assert life.table.find("m", "1").report.sha256 == "1b"


def test_a_change_of_session_or_batching_in_model_toml_is_a_reload_without_a_gap() -> None:
    life = serving(1)
    old = life.table.find("m", "1")
    life.put(1, config=config_of(description="new words"))
    life.settle()
    assert life.table.find("m", "1") is old
    life.put(1, config=config_of(session=SessionRule(intra_op_threads=2)))
    life.step(2)
    assert life.table.find("m", "1") is old
    life.settle()
    assert life.table.find("m", "1").config.session.intra_op_threads == 2


# On the way out


def test_a_removed_version_drains_and_goes_when_its_last_request_is_done() -> None:
    life = Lifecycle()
    life.put(1, 2, config=config_of("all"))
    life.settle()
    with life.request("2") as one, life.request("2") as two:
        assert one is two
        life.put(1, config=config_of("all"))
        life.step(3)
        assert life.ready() == [1]
        assert life.state(2)[0] == "UNLOADING"
        assert life.state(2)[1]
        with pytest.raises(NotReady, match="UNLOADING"):
            life.table.find("m", "2")
    life.step(2)
    with pytest.raises(UnknownVersion):
        life.table.find("m", "2")


def test_a_removed_version_that_comes_back_while_it_drains_is_loaded_beside_itself() -> None:
    life = serving(1)
    with life.request() as held:
        life.put()
        life.step(3)
        life.put(1)
        life.settle()
        assert life.ready() == [1]
        assert life.table.find("m", None) is not held
        assert life.manager.entries["m"].records[1].draining == [held]


def test_the_only_version_makes_way_for_one_that_takes_its_place_at_once_but_not_before_it_is_ready() -> None:
    life = serving(2)
    life.put(1)
    life.step(2)
    assert life.ready() == [2]
    life.settle()
    assert life.ready() == [1]


def test_a_removed_model_is_unknown_when_its_last_request_is_done() -> None:
    life = serving(1)
    with life.request():
        life.source.folders.clear()
        life.step(3)
        assert life.state(1)[0] == "UNLOADING"
        assert life.table.models["m"].default() is None
    life.step(2)
    with pytest.raises(UnknownModel):
        life.table.model("m")


def test_a_version_removed_during_its_trial_never_answers() -> None:
    life = serving(1)
    life.put(1, 2)
    life.step(2)
    life.put(1)
    life.step(2)
    life.settle()
    assert life.ready() == [1]
    assert 2 not in life.manager.entries["m"].records
