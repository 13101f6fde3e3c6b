"""What labels and baselines say of a version: estimates, reckoning, alarms, metrics, and what cannot be judged."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from gateway.journal.schema import Column, SegmentSpec
from gateway.models.config import parse
from monitors import cli
from monitors.alarms import Alarm
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import FILE, Baseline
from monitors.labelled import Labelled, Rows
from monitors.learnt import PART, Learner, Learnt
from monitors.metrics import Collector
from monitors.rule import Rule
from monitors.task import Task
from monitors.types import Array, Columns
from tests.monitors.test_labelled import TASK, Watched

DECLARED = """
[feedback.late]
type = "boolean"
maturity = "2d"

[monitor.performance]
label = "late"
score = "probabilities"
"""
BINARY = Task("y", "p", (0, 1))
MANY = Task("y", "p", ("a", "b", "c"))
NUMBER = Task("y", "p")
DICE = np.random.default_rng(8)


def baseline_of(task: Task, features: dict[str, Array], outputs: dict[str, Array], labels: Array) -> Baseline:
    source = Arrays(features, outputs, {task.label: labels})
    return build(source, monitors={PART: lambda layout: Learner.of(task, source)})


def labelled(task: Task, baseline: Baseline | None) -> Labelled:
    made = Labelled.of(("m", 1), task, baseline, Rule(block_s=60.0))
    assert made.unlearnt == ("" if baseline is not None else "there is no baseline")
    return made


def rows_of(task: Task, features: dict[str, Array], scores: Array, labels: Any, arrived_s: int = 0) -> Rows:
    count = len(scores)
    found = task.scores({task.score: scores}, count)
    assert found is not None
    columns = task.columns(np.zeros(count, np.int64), found, task.truth(labels), features)
    return Rows(columns, np.full(count, arrived_s * 10**9), np.ones(count, np.bool_))


def test_performance_is_estimated_before_labels_come_and_reckoned_with_when_they_do() -> None:
    scores = DICE.random(20_000)
    baseline = baseline_of(BINARY, {"x": scores}, {"p": scores}, (DICE.random(20_000) < scores).astype(int))
    again = Baseline.from_bytes(baseline.to_bytes())
    version = labelled(BINARY, again)
    live = DICE.beta(2, 4, 5000)
    version.update(Columns(np.zeros(5000, np.int64), {"x": live}, {"p": live}))
    estimated = version.figures()["estimated"]
    assert version.figures()["realised"]["roc_auc"].value is None
    truth = (DICE.random(5000) < live).astype(int)
    assert estimated["roc_auc"].value == pytest.approx(roc_auc_score(truth, live), abs=0.02)
    assert estimated["f1"].value == pytest.approx(f1_score(truth, live >= 0.5), abs=0.03)
    version.label(rows_of(BINARY, {}, live, truth))
    reckoned = version.value()["reconciled"]
    assert reckoned["coverage"]["value"] == 1.0
    assert abs(reckoned["labelled"]["accuracy"]["z"]) < 4
    assert version.figures()["realised"]["f1"].value == pytest.approx(f1_score(truth, live >= 0.5))


def test_many_classes_and_numbers_are_estimated_too() -> None:
    logits = DICE.normal(0, 1.5, (8000, 3))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    letters = np.array(list("abc"), object)[[DICE.choice(3, p=row) for row in shares]]
    many = labelled(MANY, baseline_of(MANY, {"x": logits[:, 0]}, {"p": shares}, letters))
    many.update(Columns(np.zeros(4000, np.int64), {}, {"p": shares[:4000]}))
    many.label(rows_of(MANY, {}, shares[:4000], letters[:4000]))
    right = (np.array(list("abc"), object)[shares[:4000].argmax(axis=1)] == letters[:4000]).mean()
    assert many.figures()["realised"]["accuracy"].value == pytest.approx(right)
    assert many.figures()["estimated"]["accuracy"].value == pytest.approx(right, abs=0.02)
    x = DICE.random(12_000)
    off = DICE.normal(0, 1, 12_000) * np.where(x > 0.5, 5.0, 1.0)
    number = labelled(NUMBER, baseline_of(NUMBER, {"x": x}, {"p": x}, x + off))
    hard = x > 0.5
    number.update(Columns(np.zeros(int(hard.sum()), np.int64), {"x": x[hard]}, {"p": x[hard]}))
    expected = float(np.abs(off[hard]).mean())
    assert number.figures()["estimated"]["mae"].value == pytest.approx(expected, rel=0.1)
    number.label(rows_of(NUMBER, {"x": x[hard]}, x[hard], (x + off)[hard]))
    assert number.figures()["realised"]["mae"].value == pytest.approx(expected)
    assert abs(number.value()["reconciled"]["mae"]["z"]) < 4
    loss = number.labels["loss"].total
    assert loss.value()["mae"]["value"] == pytest.approx(expected)
    number.retract(rows_of(NUMBER, {"x": x[hard]}, x[hard], (x + off)[hard]))
    assert loss.to_bytes() == loss.fresh().to_bytes()


@pytest.mark.parametrize("from_baseline", [True, False])
def test_worse_losses_raise_an_alarm_once_and_usual_ones_none(tmp_path: Path, from_baseline: bool) -> None:
    scores = DICE.random((6000, 1)).astype(np.float32)
    pair = np.concatenate((scores, 1 - scores), axis=1)
    truth = DICE.random(6000) < scores[:, 0]
    baseline = baseline_of(TASK, {"x": scores[:, 0]}, {"p": pair}, truth) if from_baseline else None
    watched = Watched(tmp_path / "data", baseline)
    for share in (0.0, 0.0, 1.0, 1.0, 1.0):
        names = watched.predict(120)
        for name in names:
            usual = watched.dice.random() < watched.scores[name]
            watched.rig.put(bool(usual != (watched.dice.random() < share)), prediction_id=name)
        watched.step()
        watched.rig.clock.sleep(120)
        watched.step()
        if share == 0.0:
            assert worse(watched) == []
    (alarm,) = worse(watched)
    assert alarm.finding.losses[0].loss in ("error", "brier")
    assert watched.judged.value()["bounds"]["learned"] is not from_baseline
    watched.service = watched.another()
    watched.step()
    assert alarm.id in [each.id for each in watched.judged.alarms.latched]
    assert alarm.baseline == ("built" if from_baseline else "learned")
    assert watched.service.acknowledge(alarm.id, "ada") is not None
    watched.service = watched.another()
    watched.step()
    assert alarm.id not in [each.id for each in watched.judged.alarms.latched]
    assert worse(watched) == [alarm]
    watched.close()


def worse(watched: Watched) -> list[Alarm]:
    """The alarms about labels; the rows may differ from those of the baseline as they like."""
    return [alarm for alarm in watched.told if alarm.kind == "performs-worse"]


def test_a_label_that_is_said_otherwise_later_is_no_new_evidence(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "data")
    names = watched.predict(300)
    first = {name: watched.rig.put(watched.scores[name] >= 0.5, prediction_id=name) for name in names}
    watched.step()
    assert watched.judged.value()["bounds"]["losses"]["error"] < 0.1
    watched.rig.clock.sleep(300)
    for name in names:
        watched.rig.put(watched.scores[name] < 0.5, prediction_id=name, supersedes=first[name])
    watched.step()
    watched.rig.clock.sleep(300)
    watched.step()
    assert watched.judged.figures()["realised"]["accuracy"].value == 0.0
    assert worse(watched) == []
    for name in watched.predict(100):
        watched.rig.put(watched.scores[name] < 0.5, prediction_id=name)
    watched.step()
    watched.rig.clock.sleep(300)
    watched.step()
    (alarm,) = worse(watched)
    assert alarm.finding.losses[0].rows == 100
    watched.close()


def test_another_tolerance_keeps_the_labels_and_the_alarms_and_gathers_evidence_anew() -> None:
    scores = DICE.random(2000)
    baseline = baseline_of(BINARY, {"x": scores}, {"p": scores}, (DICE.random(2000) < scores).astype(int))
    version = labelled(BINARY, baseline)
    wrong = rows_of(BINARY, {}, scores[:300], scores[:300] < 0.5, 30)
    version.label(wrong)
    version.hear(wrong)
    alarms = version.close(60 * 10**9)
    assert [alarm.watch for alarm in alarms] == ["performance", "labels"]
    version.hear(rows_of(BINARY, {}, scores[:10], scores[:10] < 0.5, 90))
    same = labelled(BINARY, baseline)
    same.load_labels(version.labels_to_bytes())
    assert same.labels_to_bytes() == version.labels_to_bytes()
    other = Labelled.of(("m", 1), replace(BINARY, tolerance=0.1), baseline, Rule(block_s=10.0))
    other.load_labels(version.labels_to_bytes())
    assert other.labels["score"].to_bytes() == version.labels["score"].to_bytes()
    assert other.alarms.all == tuple(alarms)
    assert other.alarms.value()["performance"]["log_m"] is None
    assert other.is_due(110 * 10**9), "the block of 10 s that begins at 60 s has ended"
    other.close(110 * 10**9)
    assert other.alarms.value()["performance"]["log_m"] > 0
    judged_otherwise = Labelled.of(("m", 1), replace(BINARY, threshold=0.7), None, Rule(block_s=10.0))
    with pytest.raises(ValueError, match="the state is of"):
        judged_otherwise.load_labels(version.labels_to_bytes())


def test_what_is_usual_is_learned_of_the_first_errors_of_a_number() -> None:
    version = labelled(Task("y", "p", learn_labels=200), None)
    off = DICE.normal(0, 3, 400)
    version.hear(rows_of(version.task, {}, np.zeros(150), off[:150], 10))
    assert version.value()["bounds"] == {"learned": True, "losses": {}}
    again = labelled(version.task, None)
    again.load_labels(version.labels_to_bytes())
    again.hear(rows_of(again.task, {}, np.zeros(150), off[150:300], 10))
    scale = np.abs(off[:300]).mean()
    usual = (np.abs(off[:300]) / (np.abs(off[:300]) + scale)).mean()
    assert again.scale == pytest.approx(scale)
    assert usual + 0.02 < again.value()["bounds"]["losses"]["relative_error"] < usual + 0.15
    again.hear(rows_of(again.task, {}, np.zeros(100), off[300:], 70))
    assert again.is_due(200 * 10**9)
    assert again.close(200 * 10**9) == []
    again.hear(rows_of(again.task, {}, np.zeros(100), off[300:] * 20, 300))
    assert again.close(310 * 10**9) == [], "a block was closed before it ended"
    (alarm,) = again.close(400 * 10**9)
    assert alarm.finding.losses[0].loss == "relative_error"


def test_a_scrape_has_realised_and_estimated_figures_with_the_rows_they_rest_on(tmp_path: Path) -> None:
    scores = DICE.random((4000, 1))
    pair = np.concatenate((scores, 1 - scores), axis=1)
    watched = Watched(
        tmp_path / "data", baseline_of(TASK, {"x": scores[:, 0]}, {"p": pair}, DICE.random(4000) < scores[:, 0])
    )
    names = watched.predict(100)
    for name in names[:40]:
        watched.rig.put(watched.scores[name] >= 0.5, prediction_id=name)
    watched.step()
    found = {
        (
            sample.name.removeprefix("headgate_performance_"),
            sample.labels["metric"],
            sample.labels["kind"],
        ): sample.value
        for family in Collector(watched.service).collect()
        for sample in family.samples
        if sample.name.startswith("headgate_performance_")
    }
    assert found["ratio", "accuracy", "realised"] == 1.0
    assert found["samples", "accuracy", "realised"] == 40
    assert 0.6 < found["ratio", "accuracy", "estimated"] < 0.9
    assert found["samples", "accuracy", "estimated"] == 100
    assert found["error", "log_loss", "realised"] > 0
    assert all(np.isfinite(value) for value in found.values())
    watched.close()


def test_the_labels_of_training_data_are_learnt_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models" / "flights" / "1"
    folder.mkdir(parents=True)
    (folder.parent / "model.toml").write_text(DECLARED)
    scores = DICE.random(2000).round(3)
    late = DICE.random(2000) < scores
    lines = [f"{score},{score},{1 - score},{answer}" for score, answer in zip(scores, late.astype(int), strict=True)]
    (tmp_path / "train.csv").write_text("x,probabilities[1],probabilities[0],late\n" + "\n".join(lines))
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    options = [str(folder), str(tmp_path / "train.csv"), "--outputs", "probabilities[0],probabilities[1]"]
    assert cli.run(parser.parse_args([*options, "--label", "late"])) == 0
    assert "from the labels" in capsys.readouterr().out
    task = Task.of(parse(DECLARED.encode()))
    assert task is not None
    learnt = Learnt(task, Baseline.load(folder / FILE).parts[PART])
    wrong = float(((scores >= 0.5) != late).mean())
    assert learnt.losses["error"][0] == pytest.approx(wrong * 2000)
    assert learnt.losses["error"][1] == 2000
    assert wrong < learnt.bounds()["error"] - task.tolerance < wrong + 0.05
    assert cli.run(parser.parse_args([str(folder), str(tmp_path / "train.csv"), "--label", "late"])) == 2
    assert "the output 'probabilities' with 1 or 2 values a row is not among the outputs" in capsys.readouterr().err


def test_the_part_of_a_baseline_is_refused_for_another_task() -> None:
    scores = DICE.random(500)
    baseline = baseline_of(BINARY, {"x": scores}, {"p": scores}, (DICE.random(500) < scores).astype(int))
    other = Labelled.of(("m", 1), Task("y", "p", (0, 1), threshold=0.7), baseline, Rule(block_s=60.0))
    assert other.learnt is None
    assert "from 0.5, and not about" in other.unlearnt
    with pytest.raises(ValueError, match="cannot be read"):
        Learnt(BINARY, b"\x00")


def test_what_the_file_says_becomes_the_task() -> None:
    task = Task.of(parse(DECLARED.encode()))
    assert task is not None
    assert (task.kind, task.classes, task.window_ns) == ("binary", (False, True), 9 * 86_400 * 10**9)
    named = """
[feedback.kind]
type = "category"
values = ["b", "a", "c"]
[outputs.p]
labels = ["a", "b", "c"]
[monitor.performance]
label = "kind"
score = "p"
"""
    task = Task.of(parse(named.encode()))
    assert task is not None
    assert (task.kind, task.classes) == ("multiclass", ("a", "b", "c"))
    assert Task.of(parse(b"")) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[monitor.performance]\nlabel = "late"\nscore = "p"', "'late' is no name of .feedback.; there is none"),
        ('[feedback.t]\ntype = "text"\n[monitor.performance]\nlabel = "t"\nscore = "p"', "no output can be compared"),
        (DECLARED + 'classes = ["a", "b"]', "those of a boolean are false and true"),
        (
            '[feedback.n]\ntype = "integer"\nmax = 3\n[monitor.performance]\nlabel="n"\nscore = "p"\nclasses = [1, 7]',
            "7 is no value of 'n', which is an integer at most 3",
        ),
        (DECLARED + "threshold = 1.5", "threshold"),
        ('[feedback.late]\ntype = "boolean"\n[monitor.performance]\nlabel = "late"', "score"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_in_words_that_name_its_key(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text.encode())


@pytest.mark.parametrize(
    ("columns", "side", "words"),
    [
        ((("probabilities", (2,)),), (), ""),
        ((("probabilities", (1,)),), (), ""),
        ((("probabilities", (3,)),), (), "has 3 values a row; a binary of 'late' needs 1 or 2"),
        ((("other", (2,)), ("more", ())), (), "is no output of the model: it has more, other"),
        ((), (("probabilities", (2,)),), r"has no column of the output 'probabilities' \(kept: digest\)"),
    ],
)
def test_an_output_that_does_not_fit_is_named(columns: Any, side: Any, words: str) -> None:
    task = Task.of(parse(DECLARED.encode()))
    assert task is not None
    made, apart = ([Column("output", name, "<f4", shape, 0) for name, shape in each] for each in (columns, side))
    kept = {"probabilities": "digest" if side else "full"}
    spec = SegmentSpec("p", "m", 1, "", 0, "", 10, tuple(made), tuple(apart), kept)
    if not words:
        assert task.trouble(spec) == ""
    else:
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(task.trouble(spec))
