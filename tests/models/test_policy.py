"""Policy: tables of situations and what must follow, then what must hold in every situation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.models.config import VersionRule
from gateway.models.policy import Action, VersionView, Wishes, aspired, next_action

NOBODY = Wishes()
LATEST = VersionRule()
LATEST_2 = VersionRule(count=2)
ALL = VersionRule("all")


def served(version: int) -> VersionView:
    return VersionView(version, serving=True)


def new(version: int) -> VersionView:
    return VersionView(version, startable=True)


def loading(version: int) -> VersionView:
    return VersionView(version, busy=True)


def failed(version: int) -> VersionView:
    return VersionView(version, failed=True)


def gone(version: int) -> VersionView:
    """Serving, but its files are not there any more."""
    return VersionView(version, present=False, serving=True)


@pytest.mark.parametrize(
    ("views", "rule", "wanted"),
    [
        pytest.param([], LATEST, set(), id="nothing is wanted of nothing"),
        pytest.param([new(1), new(2), new(10)], LATEST, {10}, id="latest is the highest number"),
        pytest.param([new(1), new(2), new(10)], LATEST_2, {2, 10}, id="latest of two"),
        pytest.param([new(1)], LATEST_2, {1}, id="fewer than wanted are all wanted"),
        pytest.param([new(1), new(2), failed(3)], ALL, {1, 2}, id="all but the failed"),
        pytest.param([new(1), new(2), new(3)], VersionRule("specific", only=(1, 3, 9)), {1, 3}, id="specific"),
        pytest.param([served(1), failed(2)], LATEST, {1}, id="a failed newest version leaves the one before it"),
        pytest.param([served(1), new(2)], LATEST, {1, 2}, id="a newer version displaces nothing before it serves"),
        pytest.param([served(1), loading(2)], LATEST, {1, 2}, id="nor while it is loading"),
        pytest.param([served(1), served(2)], LATEST, {2}, id="but then it does"),
        pytest.param([served(1), served(2), new(3)], LATEST_2, {1, 2, 3}, id="the older of two stays as well"),
        pytest.param([gone(2), new(1)], LATEST, {1}, id="a removed version is not wanted"),
        pytest.param([gone(2)], LATEST, set(), id="not even when it is the only one"),
    ],
)
def test_the_rule_says_which_versions_are_wanted(views: list[VersionView], rule: VersionRule, wanted: set[int]) -> None:
    assert aspired(views, rule, (), NOBODY) == wanted


@pytest.mark.parametrize(
    ("views", "aliased", "wishes", "wanted"),
    [
        pytest.param([new(1), new(2)], {1}, NOBODY, {1, 2}, id="the target of an alias is wanted"),
        pytest.param([new(2)], {1}, NOBODY, {2}, id="a target without files is not"),
        pytest.param([failed(1), new(2)], {1}, NOBODY, {2}, id="nor a failed one"),
        pytest.param([new(1), new(2)], (), Wishes(pinned=frozenset({1})), {1, 2}, id="a pinned version is wanted"),
        pytest.param([new(1), new(2)], (), Wishes(held=frozenset({2})), {1}, id="a held version makes way"),
        pytest.param([new(1)], {1}, Wishes(held=frozenset({1})), set(), id="holding outranks an alias"),
        pytest.param([new(1), new(2)], {1}, Wishes(all_held=True), set(), id="an unloaded model has no version"),
        pytest.param(
            [new(1), new(2)], {2}, Wishes(all_held=True, pinned=frozenset({1})), {1}, id="but for those loaded since"
        ),
    ],
)
def test_aliases_and_wishes_add_to_the_rule(
    views: list[VersionView], aliased: set[int], wishes: Wishes, wanted: set[int]
) -> None:
    assert aspired(views, LATEST, aliased, wishes) == wanted


@pytest.mark.parametrize(
    ("views", "wanted", "action"),
    [
        pytest.param([], set(), None, id="nothing to do"),
        pytest.param([new(1), new(2)], {1, 2}, Action("load", 2), id="the highest is loaded first"),
        pytest.param([new(1)], set(), None, id="what is not wanted is not loaded"),
        pytest.param([loading(1), new(2)], {1, 2}, None, id="one version of a model is loaded at a time"),
        pytest.param([served(1), new(2)], {2}, Action("load", 2), id="load before unload"),
        pytest.param([served(1), loading(2)], {2}, None, id="the old one waits for the new one"),
        pytest.param([served(1), served(2)], {2}, Action("unload", 1), id="then it goes"),
        pytest.param([served(1), failed(2)], {2}, None, id="it does not go for a failed one"),
        pytest.param([served(1), served(2), served(3)], {3}, Action("unload", 1), id="the lowest goes first"),
        pytest.param([served(1)], set(), Action("unload", 1), id="where nothing is wanted, nothing stays"),
        pytest.param([served(1), served(2), loading(3)], {2, 3}, Action("unload", 1), id="loading holds nothing up"),
        pytest.param(
            [VersionView(1, serving=True, startable=True)], {1}, Action("load", 1), id="changed files are loaded again"
        ),
    ],
)
def test_the_next_action(views: list[VersionView], wanted: set[int], action: Action | None) -> None:
    assert next_action(views, wanted) == action


# What holds in every situation


@st.composite
def situations(draw: st.DrawFn) -> list[VersionView]:
    """Versions in any mixture of states that the manager can produce."""
    views = []
    for version in sorted(draw(st.sets(st.integers(1, 8), max_size=6))):
        serving, busy, present = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
        is_failed = present and not busy and draw(st.booleans())
        startable = present and not busy and not is_failed and draw(st.booleans())
        views.append(VersionView(version, present, serving, startable, busy, is_failed))
    return views


rules = st.builds(
    VersionRule,
    st.sampled_from(["latest", "all", "specific"]),
    st.integers(1, 3),
    st.lists(st.integers(1, 8), min_size=1, max_size=3).map(tuple),
)
numbers = st.frozensets(st.integers(1, 8), max_size=3)
wish_sets = st.builds(Wishes, st.booleans(), numbers, numbers)


@settings(deadline=None)
@given(situations(), rules, numbers, wish_sets, st.randoms())
def test_the_same_situation_gives_the_same_answer_in_any_order(
    views: list[VersionView], rule: VersionRule, aliased: frozenset[int], wishes: Wishes, random: object
) -> None:
    before = [replace(view) for view in views]
    wanted = aspired(views, rule, aliased, wishes)
    action = next_action(views, wanted)
    shuffled = list(views)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert aspired(iter(shuffled), rule, aliased, wishes) == wanted
    assert next_action(shuffled, wanted) == action
    assert views == before


@settings(deadline=None)
@given(situations(), rules, numbers, wish_sets)
def test_the_last_wanted_version_that_serves_is_never_unloaded(
    views: list[VersionView], rule: VersionRule, aliased: frozenset[int], wishes: Wishes
) -> None:
    wanted = aspired(views, rule, aliased, wishes)
    action = next_action(views, wanted)
    serving = {view.version for view in views if view.serving}
    if action is not None and action.verb == "unload":
        assert action.version in serving - wanted
        assert not wanted or (serving - {action.version}) & wanted
    if action is not None and action.verb == "load":
        assert action.version in wanted
        assert not any(view.busy for view in views)


@settings(deadline=None)
@given(situations(), rules, numbers, wish_sets)
def test_actions_come_to_an_end(
    views: list[VersionView], rule: VersionRule, aliased: frozenset[int], wishes: Wishes
) -> None:
    for _ in range(2 * len(views) + 1):
        action = next_action(views, aspired(views, rule, aliased, wishes))
        if action is None:
            return
        views = [apply(view, action) for view in views]
    raise AssertionError(f"there is always something left to do: {views}")


def apply(view: VersionView, action: Action) -> VersionView:
    if view.version != action.version:
        return view
    if action.verb == "load":
        return replace(view, busy=True, startable=False)
    return replace(view, serving=False)


@settings(deadline=None)
@given(situations(), st.integers(1, 3), numbers, wish_sets)
def test_a_failed_newest_version_never_unwants_the_one_before_it(
    views: list[VersionView], count: int, aliased: frozenset[int], wishes: Wishes
) -> None:
    rule = VersionRule(count=count)
    assert aspired([*views, failed(9)], rule, aliased, wishes) == aspired(views, rule, aliased, wishes)


@settings(deadline=None)
@given(situations(), st.integers(1, 3), st.sampled_from([new(9), loading(9)]))
def test_a_version_on_its_way_up_never_unwants_one_that_serves(
    views: list[VersionView], count: int, arriving: VersionView
) -> None:
    rule = VersionRule(count=count)
    serving = {view.version for view in views if view.serving}
    wanted = aspired(views, rule, (), NOBODY) & serving
    assert wanted <= aspired([*views, arriving], rule, (), NOBODY)


@settings(deadline=None)
@given(st.sets(st.integers(1, 8), min_size=1), st.sets(st.integers(1, 8)), st.integers(1, 3))
def test_in_the_end_the_latest_that_can_be_loaded_serve_and_at_every_moment_one_does(
    present: set[int], bad: set[int], count: int
) -> None:
    rule = VersionRule(count=count)
    views = {version: new(version) for version in present}
    had_one = False
    for _ in range(40):
        action = next_action(list(views.values()), aspired(views.values(), rule, (), NOBODY))
        if action is None:
            break
        if action.verb == "unload":
            views[action.version] = VersionView(action.version, startable=True)
        else:
            views[action.version] = failed(action.version) if action.version in bad else served(action.version)
        serving = {view.version for view in views.values() if view.serving}
        assert serving or not had_one
        had_one = had_one or bool(serving)
    serving = {view.version for view in views.values() if view.serving}
    assert serving == set(sorted(present - bad)[-count:])
