"""What labels say beside their figures: whether they mean something else, by slice, and to detectors of streams."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.models import config
from monitors import backfill_cli
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import Baseline
from monitors.labelled import Labelled
from monitors.learnt import PART, Learner
from monitors.loss_streams import DETECTORS
from monitors.metrics import Collector
from monitors.rule import Rule
from monitors.service import Subject
from monitors.task import Task
from monitors.types import Array
from tests.ledger.rig import write
from tests.monitors.test_labelled import RULE, TASK, Watched
from tests.monitors.test_labelled_figures import BINARY, MANY, baseline_of, labelled, rows_of

DICE = np.random.default_rng(11)


def sliced() -> Baseline:
    """A baseline of what the rig's model answers, with customers 7 and 8 as slices."""
    scores = DICE.random(3000).astype(np.float32)
    features: dict[str, Array] = {
        "x[0]": scores,
        "x[1]": scores,
        "customer": DICE.integers(7, 9, 3000),
    }
    truth = DICE.random(3000) < scores
    source = Arrays(features, {"p": np.stack((scores, 1 - scores), axis=1)}, {"late": truth})
    learner = Learner.of(TASK, source)
    return build(source, categorical=["customer"], slices=["customer"], monitors={PART: lambda layout: learner})


def predict(watched: Watched, customer: int, scores: list[float]) -> list[str]:
    made = []
    for score in scores:
        watched.rig.clock.sleep(1)
        name = write(watched.segment, watched.rig.clock.now_ns(), probability=[score], customer=[customer])
        watched.scores[name] = float(np.float32(score))
        made.append(name)
    return made


@pytest.mark.parametrize("kind", ["binary", "classes"])
def test_labels_that_mean_something_else_at_the_same_score_are_told_though_as_many_answers_are_right(kind: str) -> None:
    """1. In training a score is the share of ones. 2. Now a quarter of the answers is wrong at every score, as many as
    before. Result: the watch on labels has an alarm; while labels mean what they meant it has none.
    """
    if kind == "binary":
        task, scores = BINARY, DICE.random(20_000)
        truth = (DICE.random(20_000) < scores).astype(int)
        changed = np.where(DICE.random(6000) < 0.25, scores[:6000] < 0.5, scores[:6000] >= 0.5).astype(int)
    else:
        task, scores = MANY, np.tile([0.6, 0.3, 0.1], (20_000, 1))
        truth = np.array(list("abc"), object)[DICE.choice(3, 20_000, p=[0.6, 0.3, 0.1])]
        changed = np.array(list("abc"), object)[DICE.choice(3, 6000, p=[0.6, 0.1, 0.3])]
    version = labelled(task, baseline_of(task, {"x": np.zeros(20_000)}, {"p": scores}, truth))
    version.hear(rows_of(task, {}, scores[:6000], truth[:6000], 30))
    assert version.close(90 * 10**9) == []
    version.hear(rows_of(task, {}, scores[:6000], changed, 120))
    (alarm,) = [alarm for alarm in version.close(200 * 10**9) if alarm.watch == "labels"]
    assert alarm.kind == "labels-differ-from-training"
    assert alarm.finding.features[0].feature == "label"
    again = labelled(task, version_baseline := baseline_of(task, {"x": np.zeros(20_000)}, {"p": scores}, truth))
    again.load_labels(version.labels_to_bytes())
    assert again.labels_to_bytes() == version.labels_to_bytes()
    assert version_baseline.facts.rows == 20_000


def test_detectors_of_streams_that_are_asked_for_look_at_losses_in_order_and_go_on_after_a_restart() -> None:
    """1. Answers are nearly always right, and then every other one is wrong. Result: the detectors that were named tell
    of both losses, in the report and the metric, at the time when the labels came; others are not there.
    """
    task = replace(BINARY, loss_detectors=("adwin", "page-hinkley"))
    scores = np.tile([0.05, 0.95], 1500)
    truth = (scores > 0.5).astype(int)
    truth[2000:] = DICE.integers(0, 2, 1000)
    baseline = baseline_of(BINARY, {"x": scores[:2000]}, {"p": scores[:2000]}, truth[:2000])
    version = labelled(task, baseline)
    version.hear(rows_of(task, {}, scores[:2500], truth[:2500], 60))
    again = labelled(task, baseline)
    again.load_labels(version.labels_to_bytes())
    again.hear(rows_of(task, {}, scores[2500:], truth[2500:], 120))
    told = again.value()["detections"]
    assert set(told) == {"adwin", "page-hinkley"}
    for losses in told.values():
        for found in losses.values():
            assert (found["seen"], found["last_ns"]) == (3000, found["last_ns"])
    assert told["adwin"]["error"]["detections"] >= 1
    assert told["adwin"]["error"]["last_ns"] in (60 * 10**9, 120 * 10**9)
    other = labelled(replace(task, loss_detectors=("ddm", "adwin")), baseline)
    other.load_labels(version.labels_to_bytes())
    assert other.value()["detections"]["adwin"] == version.value()["detections"]["adwin"]
    assert other.value()["detections"]["ddm"]["error"]["seen"] == 0


def test_every_detector_can_be_named_in_a_model_toml() -> None:
    names = ", ".join(f'"{name}"' for name in DETECTORS)
    found = config.parse(
        f"""
        [feedback.late]
        type = "boolean"
        [monitor]
        slices = ["city"]
        [monitor.budgets]
        recent = "2 per model-month"
        [monitor.performance]
        label = "late"
        score = "p"
        loss_detectors = [{names}]
        """.encode()
    )
    assert found.monitor.performance is not None
    assert found.monitor.performance.loss_detectors == tuple(DETECTORS)
    task = Task.of(found)
    assert task is not None
    assert set(Labelled.of(("m", 1), task, None, Rule()).streams.value()) == set(DETECTORS)
    assert (found.monitor.slices, found.monitor.budgets) == (("city",), {"recent": "2 per model-month"})
    with pytest.raises(ValueError, match="budgets"):
        config.parse(b'[monitor.budgets]\nother = "1 per year"\n')


def test_performance_is_told_by_slice_and_a_label_that_is_withdrawn_is_taken_out_of_its_own(tmp_path: Path) -> None:
    """1. Answers about customer 7 are right, those about 8 are wrong, nobody knows 9. 2. A label is withdrawn.
    Result: each has figures of its own, which are those of counting the labels that are left.
    """
    watched = Watched(tmp_path / "data", sliced())
    seven, eight, nine = (predict(watched, customer, [0.9] * 20) for customer in (7, 8, 9))
    for name in seven:
        watched.rig.put(True, prediction_id=name)
    wrong = [watched.rig.put(False, prediction_id=name) for name in eight]
    watched.step()
    found = watched.judged.value()["slices"]["customer"]
    accuracies = {name: found[name]["accuracy"]["value"] for name in ("7", "8", "other", "missing")}
    assert accuracies == {"7": 1.0, "8": 0.0, "other": None, "missing": None}
    assert found["other"]["score_mean"]["n"] == len(nine)
    watched.rig.clock.sleep(60)
    for event in wrong[:5]:
        watched.rig.delete(event)
    watched.step()
    assert watched.judged.value()["slices"]["customer"]["8"]["accuracy"]["n"] == 15
    watched.service.checkpoint()
    before = watched.judged.value()["slices"]
    watched.service = watched.another()
    watched.step()
    assert watched.judged.value()["slices"] == before
    watched.close()


def test_a_backfill_joins_the_labels_that_the_ledger_has_and_says_what_a_server_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1. A server with labels has counted them. 2. Everything is watched again from what is kept.
    Result: performance, its evidence and its alarms are the same, and what the server has counted stays as it was.
    """
    task = replace(TASK, loss_detectors=("ddm",))
    watched = Watched(tmp_path / "data", sliced(), task)
    for customer, share in ((7, 0.0), (8, 1.0)):
        scores = watched.dice.random(200).tolist()
        for name in predict(watched, customer, scores):
            usual = watched.dice.random() < watched.scores[name]
            watched.rig.put(bool(usual != (watched.dice.random() < share)), prediction_id=name)
        watched.step()
        watched.rig.clock.sleep(200)
        watched.step()
    watched.service.checkpoint()
    server = watched.judged.value()
    wanted = argparse.Namespace(model=None, version=None, baseline=None, write=False, json=True)
    subject = Subject(RULE, watched.baseline, task)
    now_ns = watched.rig.clock.now_ns()
    assert backfill_cli.run(wanted, watched.rig.data, lambda *_: subject, now_ns, watched.rig.ledger) == 0
    (found,) = json.loads(capsys.readouterr().out)
    told: dict[str, Any] = found["performance"]
    for name in ("realised", "labels", "slices", "bounds"):
        assert told[name] == json.loads(json.dumps(server[name]))
    assert told["detections"]["ddm"]["error"]["seen"] == 400
    assert {alarm["kind"] for alarm in found["alarms"]} >= {"performs-worse", "labels-differ-from-training"}
    assert found["operation"]["answered"] == 400
    names = {sample.name for family in Collector(watched.service).collect() for sample in family.samples}
    assert "headgate_loss_detections_total" in names
    watched.close()
