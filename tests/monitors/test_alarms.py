"""Alarms by budget: latching, findings, acknowledgement, restarts; and budgets as people write them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.alarms import Alarm, Alarms
from monitors.baseline.build import Arrays, build
from monitors.evidence.budget import YEAR_S, Budget
from monitors.evidence.findings import Features
from monitors.evidence.reference import Reference
from monitors.evidence.watches import BaselineWatch, LabelWatch, LossWatch, RecentWatch, ScoreWatch
from monitors.types import Columns
from monitors.webhook import cloud_event

MINUTE_NS = 60_000_000_000
YEARLY = Budget.parse("1 per model-year")
FEATURES = Features(
    names=("age", "city"),
    bins=(("below 20", "20 to 40", "40 to 60", "60 and more", "missing"), ("Bergen", "Oslo", "other")),
    valid=np.array([[True] * 5, [True] * 3 + [False] * 2]),
    ordered=np.array([[True] * 4 + [False], [False] * 5]),
)
SHARES = np.array([[0.2, 0.4, 0.3, 0.1, 0.0], [0.5, 0.3, 0.2, 0.0, 0.0]])
MOVED = np.array([[0.1, 0.3, 0.3, 0.2, 0.1], [0.5, 0.3, 0.2, 0.0, 0.0]])


def baseline() -> Reference:
    counts = (SHARES * 10_000).astype(np.int64)
    return Reference.build(counts, valid=FEATURES.valid, ordered=FEATURES.ordered, tolerance=0.01)


def all_watches() -> Alarms:
    return Alarms(
        "loans",
        3,
        {
            "training": BaselineWatch(FEATURES, [baseline()], YEARLY, 60),
            "recent": RecentWatch(FEATURES, YEARLY, 60, epoch_s=6000, least_rows=2000),
            "error": LossWatch({"error": 0.1, "error/new": 0.2}, YEARLY, 60),
            "scores": ScoreWatch(10, YEARLY, 60),
        },
    )


def feed(alarms: Alarms, block: int, share: np.ndarray, error: float, rng: np.random.Generator) -> tuple[Alarm, ...]:
    """Fifty rows of one minute into every watch; the alarms that they raise."""
    counts = rng.multinomial(50, share)
    began = block * MINUTE_NS
    watches = alarms.watches
    training, recent, loss, scores = (watches[name] for name in ("training", "recent", "error", "scores"))
    assert isinstance(training, BaselineWatch)
    assert isinstance(recent, RecentWatch)
    assert isinstance(loss, LossWatch)
    assert isinstance(scores, ScoreWatch)
    training.update(counts, began)
    recent.update(counts, began)
    loss.update("error", rng.random(50) < error, None, began)
    loss.update("error/new", [0.0, 1.0], [9, 1], began)
    scores.update(rng.integers(0, 8, 50) + (2 if error > 0.1 else 0))
    return alarms.check(began + MINUTE_NS)


def test_a_change_raises_each_alarm_once_and_names_what_changed_and_when() -> None:
    """1. 300 quiet minutes. 2. Then age moves, some ages are missing, errors triple and scores rise.
    Result: nothing before; after it one alarm of each kind, however long it lasts, dated and explained.
    """
    rng, alarms = np.random.default_rng(1), all_watches()
    for block in range(300):
        assert feed(alarms, block, SHARES, 0.08, rng) == ()
    raised: dict[str, tuple[int, Alarm]] = {}
    for block in range(300, 390):
        for alarm in feed(alarms, block, MOVED, 0.3, rng):
            assert alarm.watch not in raised
            raised[alarm.watch] = (block, alarm)
    assert set(raised) == {"training", "recent", "error", "scores"}
    for name in ("training", "recent", "error"):
        block, alarm = raised[name]
        assert block < 330
        assert alarm.finding.began_ns is not None
        assert abs(alarm.finding.began_ns / MINUTE_NS - 300) <= 10
    for name in ("training", "recent"):
        features = raised[name][1].finding.features
        assert [each.feature for each in features] == ["age"]
        assert features[0].proved
        assert features[0].psi > 0.2
        assert features[0].largest[0].startswith("missing: 0.00% -> ")
        assert sum(features[0].after) == pytest.approx(1)
        assert sum(features[0].before) == pytest.approx(1)
        assert raised[name][1].finding.unnamed == 1
    loss = raised["error"][1].finding.losses[0]
    assert (loss.loss, loss.proved, loss.bound) == ("error", True, 0.1)
    assert loss.mean == pytest.approx(0.3, abs=0.1)
    assert raised["scores"][1].finding.began_ns is None
    assert "age (PSI" in raised["training"][1].sentence
    assert "since about 1970-01-01 0" in raised["training"][1].sentence
    assert len(alarms.latched) == 4


def test_an_alarm_explains_itself_in_json_and_travels_as_an_event() -> None:
    alarm = next(iter(alarms_after_a_change().latched))
    told = json.loads(cloud_event(alarm.id, "t", "/s", "m", alarm.raised_ns, alarm.explain()).body)["data"]
    assert told["sentence"] == alarm.sentence
    assert told["budget"] == "1 per model-year"
    assert told["finding"]["features"][0]["bins"] == list(FEATURES.bins[0])
    assert len(told["finding"]["features"][0]["after"]) == 5
    assert told["log_m"] >= told["log_threshold"] == pytest.approx(math.log(525_960))


def alarms_after_a_change(seed: int = 2) -> Alarms:
    rng, alarms = np.random.default_rng(seed), all_watches()
    for block in range(60):
        feed(alarms, block, MOVED, 0.08, rng)
    assert [each.watch for each in alarms.latched] == ["training"]
    return alarms


def test_an_acknowledged_alarm_comes_again_if_the_change_stays_and_not_before_quiet_ends() -> None:
    """1. An alarm is acknowledged with quiet until minute 200. 2. The change stays.
    Result: silence until minute 200, then a second alarm; with the change gone there is none.
    """
    for share, expected in ((MOVED, 1), (SHARES, 0)):
        rng, alarms = np.random.default_rng(3), alarms_after_a_change()
        first = alarms.latched[0]
        done = alarms.acknowledge(first.id, "ann", 7, "known", quiet_until_ns=200 * MINUTE_NS)
        assert done.acknowledged is not None
        assert (done.acknowledged.by, done.acknowledged.note) == ("ann", "known")
        assert alarms.latched == ()
        assert alarms.watches["training"].log_m == -math.inf
        for block in range(60, 199):
            assert "training" not in [each.watch for each in feed(alarms, block, share, 0.08, rng)]
        later = [alarm for block in range(199, 260) for alarm in feed(alarms, block, share, 0.08, rng)]
        training = [each for each in later if each.watch == "training"]
        assert len(training) == expected
        assert all(each.id != first.id for each in training)


def test_acknowledging_twice_keeps_the_first_and_an_unknown_alarm_is_an_error() -> None:
    alarms = alarms_after_a_change()
    first = alarms.acknowledge(alarms.latched[0].id, "ann", 7)
    assert alarms.acknowledge(first.id, "bob", 8) == first
    with pytest.raises(KeyError):
        alarms.acknowledge("nothing", "ann", 7)


@pytest.mark.parametrize("cut", [0, 1, 60, 75, 119])
def test_alarms_that_are_stored_and_restored_go_on_bit_for_bit(cut: int) -> None:
    through, resumed = all_watches(), all_watches()
    first, second = np.random.default_rng(4), np.random.default_rng(4)
    for block in range(120):
        if block == cut:
            state = resumed.to_bytes()
            resumed = all_watches()
            resumed.load(state)
            assert resumed.to_bytes() == state
        share = SHARES if block < 70 else MOVED
        assert feed(through, block, share, 0.08, first) == feed(resumed, block, share, 0.08, second)
    assert through.to_bytes() == resumed.to_bytes()
    assert through.all == resumed.all
    assert through.all


def test_alarms_outlive_a_watch_of_another_form_whose_evidence_begins_anew() -> None:
    """1. An alarm is raised. 2. Its state is loaded by watches of other losses, as after other settings.
    Result: the alarm is there and latched, what has the same form goes on, and what has not begins anew.
    """
    alarms = all_watches()
    loss, scores = alarms.watches["error"], alarms.watches["scores"]
    assert isinstance(loss, LossWatch)
    assert isinstance(scores, ScoreWatch)
    loss.update("error", np.ones(200), None, 0)
    scores.update(np.arange(100) % 8)
    (alarm,) = alarms.check(MINUTE_NS)
    other = all_watches()
    other.watches["error"] = LossWatch({"another": 0.1}, YEARLY, 60)
    other.load(alarms.to_bytes())
    assert other.latched == (alarm,)
    assert other.watches["error"].log_m == -math.inf
    assert other.watches["scores"].log_m == scores.log_m
    with pytest.raises(ValueError, match="alarms cannot be read"):
        other.load(b"no state")


def test_an_alarm_against_a_learned_baseline_does_not_speak_of_training() -> None:
    watch = BaselineWatch(FEATURES, [baseline()], YEARLY, 60)
    watch.update((MOVED * 5000).astype(np.int64), 0)
    for known, words in (("built", "those the model was trained on"), ("learned", "its baseline was learned from")):
        (alarm,) = Alarms("m", 1, {"training": watch}, baseline=known).check(MINUTE_NS)
        assert words in alarm.sentence
        assert alarm.explain()["baseline"] == known


def test_old_alarms_are_forgotten_and_counted_but_never_those_that_nobody_has_seen() -> None:
    alarms = Alarms("m", 1, {"a": LossWatch({"a": 0.1}, YEARLY, 60), "b": LossWatch({"b": 0.1}, YEARLY, 60)}, keep=2)
    for name in ("a", "b", "a", "a"):
        watch = alarms.watches[name]
        assert isinstance(watch, LossWatch)
        watch.update(name, np.ones(100), None, 5)
        for alarm in alarms.check(9):
            if name == "a":
                alarms.acknowledge(alarm.id, "ann", 1)
    assert alarms.raised == 4
    assert alarms.forgotten == 2
    assert [each.watch for each in alarms.all] == ["b", "a"]
    assert [each.watch for each in alarms.latched] == ["b"]


def test_the_recent_watch_learns_an_epoch_first_and_takes_an_acknowledged_change_as_normal() -> None:
    rng = np.random.default_rng(5)
    watch = RecentWatch(FEATURES, YEARLY, 60, epoch_s=6000, least_rows=2000)
    for block in range(100):
        watch.update(rng.multinomial(50, SHARES), block * MINUTE_NS)
    assert watch.is_learning
    assert watch.log_m == -math.inf
    for block in range(100, 130):
        watch.update(rng.multinomial(50, MOVED), block * MINUTE_NS)
    assert not watch.is_learning
    assert watch.log_m > watch.log_threshold
    watch.restart()
    assert watch.is_learning
    loudest = -math.inf
    for block in range(130, 400):
        watch.update(rng.multinomial(50, MOVED), block * MINUTE_NS)
        loudest = max(loudest, watch.log_m)
    assert not watch.is_learning
    assert loudest < watch.log_threshold


def test_an_epoch_with_few_rows_goes_on() -> None:
    watch = RecentWatch(FEATURES, YEARLY, 60, epoch_s=600, least_rows=2000)
    for block in range(30):
        watch.update(np.array([[10, 20, 15, 5, 0], [25, 15, 10, 0, 0]]), block * MINUTE_NS)
        assert watch.is_learning
    for block in range(30, 42):
        watch.update(np.array([[10, 20, 15, 5, 0], [25, 15, 10, 0, 0]]), block * MINUTE_NS)
    assert not watch.is_learning


def test_the_evidence_of_every_watch_is_published_with_what_it_takes() -> None:
    value = alarms_after_a_change().value()
    assert set(value) == {"training", "recent", "error", "scores"}
    assert value["training"]["latched"]
    assert not value["scores"]["latched"]
    assert value["recent"]["log_m"] is None
    assert value["recent"]["log_threshold"] == pytest.approx(math.log(2 * 525_960))
    json.dumps(value, allow_nan=False)


def test_names_that_do_not_fit_the_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="names for the features"):
        BaselineWatch(FEATURES, [Reference.build([[1, 2]])], YEARLY, 60)
    with pytest.raises(ValueError, match="at least one loss"):
        LossWatch({}, YEARLY, 60)


def test_features_take_their_names_from_the_layout_of_a_baseline() -> None:
    """1. A baseline is built of a number and a category. 2. Live rows with missing numbers and another city come.
    Result: an alarm that names both features with the labels of their bins, missing and unseen among them.
    """
    rng = np.random.default_rng(6)
    cities = np.array(["Bergen", "Oslo"], dtype=object)
    made = build(Arrays({"age": rng.normal(40, 10, 5000), "city": cities[rng.integers(0, 2, 5000)]}))
    features = Features.of(made.layout)
    reference = Reference.build(made.state.counts, valid=features.valid, ordered=features.ordered)
    alarms = Alarms("m", 1, {"training": BaselineWatch(features, [reference], YEARLY, 60)})
    age = rng.normal(40, 10, 400)
    age[:80] = np.nan
    city = np.where(rng.random(400) < 0.2, "Voss", cities[rng.integers(0, 2, 400)]).astype(object)
    state = made.new_state()
    state.update(Columns(np.zeros(400, np.int64), {"age": age, "city": city}))
    watch = alarms.watches["training"]
    assert isinstance(watch, BaselineWatch)
    watch.update(state.counts, 0)
    found = {each.feature: each for each in alarms.check(1)[0].finding.features}
    assert found["age"].largest[0] == "missing: 0.00% -> 20.00%"
    assert found["city"].largest[0].startswith("unseen: 0.00% -> ")
    assert found["city"].bins[-2:] == ("Bergen", "Oslo")
    with pytest.raises(ValueError, match="expected names and bins"):
        Features(("a",), (("x",),), features.valid, features.ordered)


def test_labels_that_change_sides_are_told_and_scores_that_shift_are_not() -> None:
    """1. High scores have label 1 in four of five rows, low ones in one. 2. Scores shift upwards. 3. Labels turn round.
    Result: silence at the shift, an alarm at the turn.
    """
    rng = np.random.default_rng(7)
    watch = LabelWatch([[800, 200], [200, 800]], ("no", "yes"), YEARLY, 60)
    means = np.array([[0.8, 0.2], [0.2, 0.8]])
    for block in range(100):
        high = rng.binomial(50, 0.5 if block < 50 else 0.9)
        watch.update([rng.multinomial(50 - high, means[0]), rng.multinomial(high, means[1])], block * MINUTE_NS)
        assert watch.log_m < watch.log_threshold
    state = watch.to_bytes()
    for block in range(100, 110):
        watch.update([rng.multinomial(25, means[1]), rng.multinomial(25, means[0])], block * MINUTE_NS)
    assert watch.log_m > watch.log_threshold
    finding = watch.finding()
    assert finding.began_ns is not None
    assert abs(finding.began_ns / MINUTE_NS - 100) <= 3
    assert finding.features[0].bins == ("no", "yes")
    watch.load(state)
    assert watch.log_m < watch.log_threshold
    watch.restart()
    assert watch.log_m == -math.inf


# --- budgets ---


@pytest.mark.parametrize(
    ("text", "per_year"),
    [
        ("1 per model-year", 1),
        ("2 per model-month", 24),
        ("1 per 3 model-months", 4),
        ("0.5 per year", 0.5),
        (" 1 per 90 days ", YEAR_S / 90 / 86_400),
        ("1 per model-week", YEAR_S / 604_800),
        ("3 per quarter", 12),
    ],
)
def test_a_budget_is_read_as_it_is_meant(text: str, per_year: float) -> None:
    assert Budget.parse(text).per_year == pytest.approx(per_year)


@pytest.mark.parametrize(
    "text", ["", "one per year", "0 per year", "1 per 0 years", "1 per decade", "-1 per year", "1"]
)
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="alarm budget such as"):
        Budget.parse(text)


@settings(deadline=None)
@given(alarms=st.floats(0.01, 100), seconds=st.floats(1, 3600))
def test_thresholds_hold_what_the_budget_allows(alarms: float, seconds: float) -> None:
    """Blocks in a year over blocks between false alarms is the number of false alarms in a year."""
    budget = Budget(alarms, YEAR_S)
    between = math.exp(budget.log_threshold(seconds))
    assert YEAR_S / seconds / between == pytest.approx(budget.per_year)
    assert math.exp(budget.part(0.5).log_threshold(seconds)) == pytest.approx(2 * between)


def test_a_budget_that_allows_an_alarm_in_every_block_is_refused() -> None:
    with pytest.raises(ValueError, match="at most one for each block"):
        Budget.parse("1 per hour").log_threshold(7200)
    with pytest.raises(ValueError, match="longer than 0"):
        YEARLY.log_threshold(0)


@settings(deadline=None)
@given(alarms=st.integers(1, 50), name=st.sampled_from(["hour", "day", "week", "month", "quarter", "year"]))
def test_a_budget_reads_back_as_it_was_written(alarms: int, name: str) -> None:
    budget = Budget.parse(f"{alarms} per model-{name}")
    assert Budget.parse(str(budget)) == budget
