"""The manager, stepped by hand: a fake folder, a fake loader, jobs that end when the test says so."""

from __future__ import annotations

import asyncio
import errno
import logging
from dataclasses import replace

import pytest

from gateway.errors import HeadgateError, LoadRejected, LoadUnavailable, NotReady, UnknownModel, UnknownVersion
from gateway.models.config import SessionRule
from gateway.models.manager import RETRY_S
from gateway.models.repository import Repository
from gateway.models.source import ModelFolder
from gateway.models.wishes import AliasMove, ModelWishes
from tests.models.fakes import FakeLoader, Lifecycle, config_of, files_of

BROKEN = LoadRejected("it is broken")
CROWDED = LoadUnavailable("no room just now")


def serving(*versions: int, loader: FakeLoader | None = None) -> Lifecycle:
    """A lifecycle in which these versions were found and, as far as the rule wants them, serve."""
    life = Lifecycle(loader)
    life.put(*versions)
    life.settle()
    return life


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


# Failures and tries


def test_a_rejected_version_is_not_tried_again_until_its_files_change() -> None:
    life = Lifecycle(FakeLoader(lambda *_: BROKEN))
    life.put(1)
    life.settle()
    life.step(1000)
    assert life.loader.checks == [("m", 1)]
    life.loader.checked = lambda *_: None
    life.put(files_of(1, "b"))
    life.settle()
    assert life.ready() == [1]


def test_a_version_that_lacked_resources_is_tried_again_with_longer_and_longer_pauses() -> None:
    life = Lifecycle(FakeLoader(lambda *_: CROWDED))
    life.put(1)
    life.step(2)
    begun: list[float] = []
    while len(begun) < 7:
        if life.jobs.jobs:
            begun.append(life.now)
            life.jobs.run()
        life.step()
    pauses = [later - earlier for earlier, later in zip(begun, begun[1:], strict=False)]
    expected = [*RETRY_S, *RETRY_S[-1:] * 2]
    assert all(want <= got <= want + 2 for got, want in zip(pauses, expected, strict=True)), pauses
    assert life.state(1) == ("UNAVAILABLE", "no room just now")
    life.loader.checked = lambda *_: None
    life.step(301)
    life.settle()
    assert life.ready() == [1]


def test_the_pauses_begin_anew_when_the_files_change() -> None:
    life = Lifecycle(FakeLoader(lambda *_: CROWDED))
    life.put(1)
    life.settle()
    life.step(7)
    life.settle()
    assert len(life.loader.checks) == 2
    life.put(files_of(1, "b"))
    life.settle()
    assert len(life.loader.checks) == 3
    life.step(7)
    assert life.jobs.jobs


def test_a_failure_that_passes_does_not_displace_the_version_that_serves() -> None:
    life = serving(1, loader=FakeLoader(lambda _, version: CROWDED if version == 2 else None))
    life.put(1, 2)
    for _ in range(100):
        life.step()
        assert life.ready() == [1]
        while life.jobs.jobs:
            life.jobs.run()
            life.step()
            assert life.ready() == [1]


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (MemoryError(), "not enough memory to load it"),
        (RuntimeError("a path: /secret"), "an internal error stopped the load; see the log"),
    ],
)
def test_whatever_a_load_raises_ends_with_the_version_and_not_with_the_manager(
    raised: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    def load(*_: object) -> HeadgateError | None:
        raise raised

    life = serving(1)
    life.loader.loaded = load
    life.put(1, 2)
    life.settle()
    assert life.ready() == [1]
    assert life.state(2) == ("UNAVAILABLE", reason)


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


# A source in trouble


def test_a_source_that_cannot_be_read_changes_nothing_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    life = serving(1)
    life.source.error = PermissionError(errno.EACCES, "Permission denied")
    life.step(5)
    assert life.ready() == [1]
    assert life.manager.source_error == "the model folder cannot be read (Permission denied)"
    assert [vars(record)["event"] for record in caplog.records].count("source-unavailable") == 1
    life.source.error = None
    life.put(1, 2)
    life.settle()
    assert (life.ready(), life.manager.source_error) == ([2], "")


def test_a_model_folder_that_cannot_be_read_changes_nothing_of_its_model() -> None:
    life = serving(1)
    life.source.folders["m"] = ModelFolder("m", None, "its folder cannot be read", readable=False)
    life.put(1, model="n")
    life.settle()
    assert (life.ready("m"), life.ready("n")) == ([1], [1])
    assert life.table.model("m").error == "its folder cannot be read"
    life.put(1, 2)
    life.settle()
    assert (life.ready("m"), life.table.model("m").error) == ([2], "")


def test_a_version_folder_that_cannot_be_read_serves_on() -> None:
    life = serving(1)
    life.put(replace(files_of(1), fingerprint="", complete=False, waiting="its folder cannot be read"))
    life.step(5)
    assert life.state(1) == ("READY", "")
    life.put(1)
    life.settle()
    assert life.loader.checks == [("m", 1)]


def test_a_model_toml_that_breaks_keeps_the_last_good_one_and_lets_nothing_new_in() -> None:
    life = Lifecycle()
    life.put(1, config=config_of("all", aliases={"champion": 1}))
    life.settle()
    life.put(1, 2, config=None, error="model.toml is not valid")
    life.settle()
    assert life.ready() == [1]
    assert life.table.model("m").error == "model.toml is not valid"
    assert life.table.model("m").aliases == {"champion": 1}
    assert life.state(2) == ("UNAVAILABLE", "model.toml is not valid")
    life.put(1, 2, config=config_of("all", aliases={"champion": 2}))
    life.settle()
    assert (life.ready(), life.table.model("m").aliases) == ([1, 2], {"champion": 2})


def test_a_model_toml_that_was_never_good_keeps_its_model_out_and_is_named() -> None:
    life = Lifecycle()
    life.put(1, config=None, error="model.toml is not valid")
    life.put(1, model="n")
    life.settle()
    assert (life.ready("m"), life.ready("n")) == ([], [1])
    with pytest.raises(NotReady, match=r"model\.toml is not valid"):
        life.table.find("m", None)


# Aliases


def test_an_alias_moves_when_its_new_target_is_ready_and_not_before() -> None:
    life = Lifecycle()
    life.put(1, 2, config=config_of(aliases={"champion": 1}))
    life.settle()
    assert life.table.find("m", None).version == 1
    life.put(1, 2, 3, config=config_of(aliases={"champion": 3}))
    life.step(2)
    life.jobs.run()
    life.step()
    assert life.table.find("m", "champion").version == 1
    life.jobs.run()
    life.step()
    assert life.table.find("m", "champion").version == 3
    assert life.table.find("m", None).version == 3


def test_an_alias_whose_new_target_fails_stays_where_it_is() -> None:
    life = serving(1, loader=FakeLoader(lambda _, version: BROKEN if version == 2 else None))
    life.put(1, config=config_of(aliases={"champion": 1}))
    life.settle()
    life.put(1, 2, config=config_of(aliases={"champion": 2}))
    life.settle()
    assert life.table.find("m", "champion").version == 1


def test_a_champion_that_is_not_ready_is_not_replaced_by_another_version() -> None:
    life = Lifecycle(FakeLoader(lambda _, version: BROKEN if version == 1 else None))
    life.put(1, 2, config=config_of(aliases={"champion": 1}))
    life.settle()
    assert life.ready() == [2]
    with pytest.raises(NotReady, match="version 1 is UNAVAILABLE: it is broken"):
        life.table.find("m", None)
    with pytest.raises(NotReady):
        life.table.find("m", "champion")
    assert life.table.find("m", "2").version == 2


def test_the_target_of_an_alias_is_loaded_whatever_the_rule_says() -> None:
    life = Lifecycle()
    life.put(1, 2, 3, config=config_of(aliases={"old": 1}))
    life.settle()
    assert life.ready() == [1, 3]
    life.put(1, 2, 3)
    life.settle()
    assert life.ready() == [3]
    with pytest.raises(UnknownVersion):
        life.table.find("m", "old")


def test_an_alias_that_the_api_moved_stands_until_model_toml_says_something_else() -> None:
    life = Lifecycle()
    life.put(1, 2, 3, config=config_of("all", aliases={"champion": 1}))
    life.settle()
    life.manager.wishes.put("m", ModelWishes({"champion": AliasMove(2, 1)}))
    life.step()
    assert life.table.find("m", None).version == 2
    life.put(1, 2, 3, config=config_of("all", aliases={"champion": 3}))
    life.settle()
    assert life.table.find("m", None).version == 3


# Wishes


def test_a_held_version_makes_way_for_the_one_before_it() -> None:
    life = serving(1, 2)
    life.manager.wishes.put("m", ModelWishes(held=(2,)))
    life.step()
    assert life.ready() == [2]
    life.settle()
    assert life.ready() == [1]
    assert life.state(2) == ("UNAVAILABLE", "unloaded by request")


def test_an_unloaded_model_stays_out_and_a_pinned_version_comes_back_alone() -> None:
    life = serving(1, 2)
    life.manager.wishes.put("m", ModelWishes(all_held=True))
    life.settle()
    assert life.ready() == []
    life.put(1, 2, 3)
    life.settle()
    assert life.ready() == []
    life.manager.wishes.put("m", ModelWishes(all_held=True, pinned=(1,)))
    life.settle()
    assert life.ready() == [1]
    life.manager.wishes.put("m", ModelWishes())
    life.settle()
    assert life.ready() == [3]


def test_a_version_unloaded_during_its_trial_is_not_loaded() -> None:
    life = Lifecycle()
    life.put(1)
    life.step(2)
    life.manager.wishes.put("m", ModelWishes(held=(1,)))
    life.jobs.run()
    life.step()
    assert life.jobs.jobs == []
    assert life.state(1) == ("UNAVAILABLE", "unloaded by request")
    life.manager.wishes.put("m", ModelWishes())
    life.settle()
    assert life.ready() == [1]


def test_a_version_unloaded_while_it_is_loaded_never_answers_and_is_withdrawn() -> None:
    life = Lifecycle()
    life.put(1)
    life.step(2)
    life.jobs.run()
    life.step()
    life.manager.wishes.put("m", ModelWishes(held=(1,)))
    life.jobs.run()
    life.step(2)
    assert life.ready() == []
    assert life.state(1) == ("UNAVAILABLE", "unloaded by request")
    assert life.loader.withdrawn == [1]


def test_a_pinned_version_serves_beside_those_of_the_rule() -> None:
    life = serving(1, 2)
    life.manager.wishes.put("m", ModelWishes(pinned=(1,)))
    life.settle()
    assert life.ready() == [1, 2]


def test_closing_ends_the_trials() -> None:
    life = serving(1)
    life.manager.close()
    assert life.loader.closed
