"""Following the plan: a worker loads what it lists, answers what serves, and says what it holds and what failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.errors import HeadgateError, LoadRejected, NotReady, UnknownModel
from gateway.models.config import ModelConfig
from gateway.models.manifest import Lineage
from gateway.models.options import SessionOptions
from gateway.models.quarantine import Report
from gateway.models.servable import Servable
from gateway.models.session import Session
from gateway.models.source import VersionFiles
from gateway.models.table import ServingTable
from gateway.routing import plan as plans
from gateway.routing.plan import Plan, PlannedModel, PlannedStatus, PlannedVersion
from gateway.telemetry.counters import VersionCounters
from gateway.workers.follower import RETRY_S, Follower
from gateway.workers.notes import Culprit, Notes, VersionKey
from gateway.workers.watched import PayloadBlocked, WatchedSession, row_digests
from tests.models.fakes import ByHand, report
from tests.onnx_models import identity

ROW = {"x": np.ones((1, 4), np.float32)}


class SessionLoader:
    """Loads an identity model, whatever the files; what is in `failing` by version is raised instead."""

    def __init__(self, notes: Notes) -> None:
        self.failing: dict[int, Exception] = {}
        self.loads: list[int] = []
        self.seen: list[tuple[Culprit, ...]] = []
        self._notes = notes

    def check(self, model: str, files: VersionFiles, config: ModelConfig) -> Report:
        raise AssertionError("a worker checks nothing")

    def load(
        self, model: str, files: VersionFiles, config: ModelConfig, found: Report, counters: VersionCounters
    ) -> Servable:
        self.loads.append(files.version)
        self.seen.append(self._notes.culprits())
        if files.version in self.failing:
            raise self.failing[files.version]
        session = Session(identity(), SessionOptions(1, True, True, ("CPUExecutionProvider",)))
        return Servable(model, files.version, session, config, found, Lineage(), counters)

    def close(self) -> None: ...


class Rig:
    """A follower whose loads run when the test says so, and the plan that it follows."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "plan.json"
        self.notes = Notes(folder / "notes")
        self.jobs = ByHand()
        self.table = ServingTable()
        self.loader = SessionLoader(self.notes)
        counters: dict[Any, VersionCounters] = {}
        self.follower = Follower(
            self.path,
            self.loader,
            self.table,
            self.jobs,
            lambda *key: counters.setdefault(key, VersionCounters()),
            self.notes,
        )
        self.generation = 0
        self.now = 1000.0

    def publish(self, *versions: PlannedVersion, settled: bool = True) -> None:
        """The next plan: these versions of the model m."""
        self.generation += 1
        statuses = [PlannedStatus(each.version, "READY" if each.serves else "LOADING", "") for each in versions]
        models = {"m": PlannedModel(list(versions), {}, statuses)} if versions else {}
        plans.write(self.path, Plan(models, settled, self.generation))

    def step(self) -> bool:
        return self.follower.step(self.generation, self.now)

    def answers(self) -> list[int]:
        return sorted(self.table.models["m"].ready) if "m" in self.table.models else []


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def planned(version: int, incarnation: str = "", *, serves: bool = True, **more: Any) -> PlannedVersion:
    found = report("f")
    name = incarnation or f"i{version}"
    return PlannedVersion(
        name, version, f"m/{version}", "f" * 16, False, ModelConfig(), found, Lineage(), serves=serves, **more
    )


def test_a_worker_without_a_plan_serves_and_says_that_it_is_starting(rig: Rig) -> None:
    assert not rig.step()
    assert rig.follower.is_current
    with pytest.raises(NotReady, match="the server is starting"):
        rig.table.find("m", None)
    rig.publish()
    assert rig.step()
    with pytest.raises(UnknownModel):
        rig.table.find("m", None)


def test_a_version_is_loaded_by_one_plan_and_answers_by_the_next(rig: Rig) -> None:
    rig.publish(planned(1, serves=False))
    assert rig.step()
    assert not rig.follower.is_current
    assert rig.follower.status(7).held == {}
    rig.jobs.run()
    assert rig.step()
    assert rig.follower.is_current
    assert (rig.answers(), rig.follower.status(7).held) == ([], {"i1": 0})
    rig.publish(planned(1))
    assert rig.step()
    assert rig.answers() == [1]
    assert rig.loader.loads == [1]
    assert not rig.step()


def test_the_old_version_answers_until_the_plan_has_the_new_one(rig: Rig) -> None:
    rig.publish(planned(1))
    rig.step()
    rig.jobs.run()
    rig.step()
    rig.publish(planned(1), planned(2, serves=False))
    rig.step()
    assert rig.answers() == [1]
    rig.jobs.run()
    rig.step()
    assert rig.answers() == [1]
    rig.publish(planned(2))
    rig.step()
    assert rig.answers() == [2]


def test_what_is_not_planned_any_more_is_held_until_its_last_call_is_done(rig: Rig) -> None:
    rig.publish(planned(1))
    rig.step()
    rig.jobs.run()
    rig.step()
    servable = rig.table.models["m"].ready[1]
    servable.in_flight = 2
    rig.publish()
    rig.step()
    assert rig.follower.status(7).held == {"i1": 2}
    assert not rig.step()
    servable.in_flight = 0
    assert rig.step()
    assert rig.follower.status(7).held == {}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LoadRejected("it is no model"), "it is no model"),
        (MemoryError(), "not enough memory to load it"),
        (ValueError("a secret path"), "an internal error stopped the load"),
    ],
)
def test_a_version_that_fails_is_named_and_the_plan_is_followed_all_the_same(
    error: Exception, said: str, rig: Rig
) -> None:
    rig.loader.failing = {2: error}
    rig.publish(planned(1), planned(2))
    rig.step()
    rig.jobs.run()
    rig.jobs.run()
    rig.step()
    assert rig.follower.is_current
    assert rig.answers() == [1]
    assert rig.follower.status(7).failed == {"i2": said}
    rig.loader.failing = {}
    rig.publish(planned(1), planned(2, "other"))
    rig.step()
    rig.jobs.run()
    rig.step()
    assert (rig.answers(), rig.follower.status(7).failed) == ([1, 2], {})


def test_what_should_answer_is_tried_again_after_growing_pauses_until_it_does(rig: Rig) -> None:
    rig.loader.failing = {1: LoadRejected("it is away")}
    rig.publish(planned(1))
    rig.step()
    rig.jobs.run()
    rig.step()
    for tries, pause in enumerate((*RETRY_S, RETRY_S[-1]), 1):
        assert {key: failure.tries for key, failure in rig.follower.missing.items()} == {"i1": tries}
        assert rig.follower.is_current
        assert rig.table.models["m"].statuses[0].state == "UNAVAILABLE"
        assert "it is away" in rig.table.models["m"].statuses[0].reason
        rig.now += pause - 0.01
        rig.step()
        assert rig.jobs.jobs == []
        rig.now += 0.02
        rig.step()
        rig.step()
        assert len(rig.jobs.jobs) == 1
        assert rig.follower.status(7).failed == {"i1": "it is away"}
        rig.jobs.run()
        rig.step()
    rig.loader.failing = {}
    rig.now += RETRY_S[-1]
    rig.step()
    rig.jobs.run()
    assert rig.step()
    assert (rig.answers(), rig.follower.missing, rig.follower.status(7).failed) == ([1], {}, {})
    assert rig.table.models["m"].statuses[0].state == "READY"


def test_what_fails_while_it_is_prepared_is_left_to_the_control_process(rig: Rig) -> None:
    rig.loader.failing = {1: LoadRejected("it is no model")}
    rig.publish(planned(1, serves=False))
    rig.step()
    rig.jobs.run()
    rig.step()
    rig.now += 2 * RETRY_S[-1]
    rig.step()
    assert rig.jobs.jobs == []
    assert rig.follower.missing == {}
    assert rig.follower.status(7).failed == {"i1": "it is no model"}


def test_a_load_that_nobody_wants_any_more_is_not_begun_and_one_that_runs_is_let_go(rig: Rig) -> None:
    rig.publish(planned(1), planned(2))
    rig.step()
    running = rig.jobs.jobs[0][0]
    assert running.set_running_or_notify_cancel()
    rig.publish()
    rig.step()
    waiting = rig.jobs.jobs[1][0]
    assert waiting.cancelled()
    _, load, arguments, _ = rig.jobs.jobs[0]
    late = load(*arguments)
    late.session.run(ROW, ["y"])
    running.set_result(late)
    rig.step()
    assert rig.follower.status(7).held == {}
    late.session._mark.running()
    assert rig.notes.culprits() == (), "its row in the notes is free"


def test_what_it_loads_and_runs_is_noted(rig: Rig) -> None:
    key = VersionKey("m", 1, "f" * 16)
    rig.publish(planned(1))
    rig.step()
    rig.jobs.run()
    assert rig.loader.seen == [(Culprit(key, loading=True),)]
    rig.step()
    assert rig.notes.culprits() == ()


def test_a_version_that_came_under_suspicion_is_watched_without_being_loaded_anew(rig: Rig) -> None:
    rig.publish(planned(1))
    rig.step()
    rig.jobs.run()
    rig.step()
    session = rig.table.models["m"].ready[1].session
    assert isinstance(session, WatchedSession)
    assert session.run(ROW, ["y"])[0].tolist() == [[1, 1, 1, 1]]
    rig.publish(planned(1, suspect=True, refused=tuple(row_digests(ROW))))
    rig.step()
    with pytest.raises(PayloadBlocked) as caught:
        session.run(ROW, ["y"])
    assert isinstance(caught.value, HeadgateError)
    assert caught.value.status == 422
    rig.publish(planned(1))
    rig.step()
    assert session.run(ROW, ["y"])[0].tolist() == [[1, 1, 1, 1]]
    assert rig.loader.loads == [1]
