"""The manager, stepped by hand, where people and model.toml say what they want: aliases, loads and unloads."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import Conflict, NotReady, UnknownVersion
from gateway.models.repository import Repository
from gateway.models.wishes import AliasMove, ModelWishes
from tests.models.fakes import FakeLoader, Lifecycle, config_of
from tests.models.stepping import BROKEN, serving

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


def test_a_load_of_a_version_ends_where_all_was_unloaded_and_loaded_again_between_two_looks() -> None:
    """Nobody wants that version any more, but nobody holds it either: who waits for it would wait for ever."""
    life = serving(1, 2)

    async def main() -> None:
        repository = Repository(life.manager, load_timeout_s=30)
        stepping = asyncio.create_task(repository.run())
        loading = asyncio.create_task(repository.load("m", 1))
        while 1 not in life.manager.wishes.get("m").pinned:
            await asyncio.sleep(0)
        life.manager.wishes.put("m", ModelWishes(all_held=True))
        life.manager.wishes.put("m", ModelWishes())
        with pytest.raises(Conflict, match="another request unloaded it meanwhile"):
            await asyncio.wait_for(loading, 20)
        stepping.cancel()

    asyncio.run(main())
