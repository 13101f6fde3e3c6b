"""Replays of what a real pipeline logged from real sessions: the same bits, or what differs and by how much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gateway.cli import main
from gateway.feedback.event import Event, IdClock
from gateway.feedback.log import Log
from gateway.feedback.rules import FeedbackRule
from gateway.journal import archive, arrow, shelves
from gateway.journal.keeper import Keeper
from gateway.journal.reader import Locator, Segment, segments
from gateway.ledger import dialect
from gateway.ledger.service import SystemClock, Writer
from gateway.replay.report import MAX_EXAMPLES
from gateway.settings import Settings
from tests import onnx_models
from tests.journal.rig import Gateway, document, load, normal
from tests.replay.shop import TOML, WIDTH, Shop, flip_one_bit, regression, replay


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    shop = Shop(tmp_path_factory.mktemp("shop"))
    shop.close()
    return shop


def test_a_hundred_thousand_predictions_are_reproduced_bit_for_bit_and_one_altered_bit_of_the_model_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1. Requests of 5 to 50 rows run together, in runs of many sizes. 2. Replay. 3. The last bit of one weight is
    flipped. 4. Replay. Result: all 100,000 rows have the same bits; then the file is named, and their answers show it.
    """
    models, data = tmp_path / "models", tmp_path / "data"
    onnx_models.put(models, "m", 1, regression(1), TOML)
    gateway = Gateway(data, load(models, "m", 1))
    values = normal(100_000, WIDTH, 9)
    rng = np.random.default_rng(5)
    turns = [
        [document(x=values[at : at + size]) for at in range(start, start + 1000, size)]
        for start in range(0, 100_000, 1000)
        for size in (int(rng.choice([5, 10, 20, 25, 50])),)
    ]
    gateway.send(turns)
    assert sum(segment.rows() for segment in gateway.close()) == 100_000
    code, report = replay(capsys=capsys, data=data, models=models)
    (answers,) = report["answers"]
    assert (code, report["reproduced"]) == (0, True)
    assert answers["rows"] == answers["same"] == 100_000
    assert answers["regrouped"] == 0
    assert answers["file"] == answers["digest"]
    assert answers["runs"] > 1000
    onnx_models.put(models, "m", 1, flip_one_bit(regression(1), "w1", 7, 0), TOML)
    code, report = replay(capsys=capsys, data=data, models=models)
    (altered,) = report["answers"]
    assert (code, report["reproduced"]) == (1, False)
    assert altered["rows"] == 100_000
    assert altered["file"] != altered["digest"] == answers["digest"]
    assert 0 < altered["beyond"] == altered["rows"] - altered["same"]


def test_the_version_whose_weights_were_altered_by_one_bit_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1. Two versions answer. 2. The last bit of one weight of version 2 is flipped. 3. Replay of all.
    Result: version 1 is reproduced; version 2 is named as altered, and its answers show it.
    """
    shop = Shop(tmp_path)
    shop.close()
    onnx_models.put(shop.models, "m", 2, flip_one_bit(regression(2), "w1", 7, 0), TOML)
    code, report = replay(capsys=capsys, data=shop.data, models=shop.models)
    one, two = sorted(report["answers"], key=lambda each: each["version"])
    assert (code, report["reproduced"]) == (1, False)
    assert one["same"] == one["rows"] > 1000
    assert one["file"] == one["digest"]
    assert two["file"] != two["digest"]
    assert 0 < two["beyond"] == two["rows"] - two["same"]
    assert 0 < two["outputs"]["score"]["max_abs"] < 1e-5
    assert two["examples"][0]["logged"] != two["examples"][0]["replayed"]
    assert main(["replay", "m", "--data", str(shop.data), "--models", str(shop.models)]) == 1
    words = capsys.readouterr().out
    assert f"altered: the file of version 2 is {two['file'][:12]}, not the one that answered" in words
    assert "not reproduced" in words


@pytest.mark.parametrize("where", ["segments", "archive"])
def test_rows_that_differ_are_shown_with_the_ids_under_which_they_are_found(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The last bit of one weight is flipped. 2. Replay, in pieces of few rows. Result: what is shown of each row as
    logged is what its record says, in the first piece and in those that follow.
    """
    monkeypatch.setattr(arrow, "CHUNK_ROWS", 20)
    shop = Shop(tmp_path, 1000)
    for segment in shop.close():
        if where == "archive":
            archive.write(segment, shop.data / "archive")
            segment.path.unlink()
    onnx_models.put(shop.models, "m", 2, flip_one_bit(regression(2), "w1", 7, 0), TOML)
    _, report = replay(capsys=capsys, data=shop.data, models=shop.models)
    (examples,) = (each["examples"] for each in report["answers"] if each["version"] == 2)
    named = [each["prediction_id"] for each in examples]
    assert len(set(named)) == len(named) == MAX_EXAMPLES
    assert max(int(each.split("#")[0][-8:], 16) for each in named) > 40
    locator = Locator(shop.data)
    records = [record for each in named if (record := locator.record(each)) is not None]
    assert [list(each.outputs["score"]) for each in records] == [each["logged"] for each in examples]


def test_a_bit_that_changes_no_answer_is_found_by_the_digest_alone(
    closed: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bias of minus infinity more or less changes nothing, but the file is not the one that answered."""
    for number in (1, 2):
        onnx_models.put(tmp_path, "m", number, regression(number), TOML)
    proto = onnx.load_from_string(regression(1))
    proto.doc_string = "another file"
    onnx_models.put(tmp_path, "m", 1, proto.SerializeToString(), TOML)
    code, report = replay("--version", "1", capsys=capsys, data=closed.data, models=tmp_path)
    (answers,) = report["answers"]
    assert answers["same"] == answers["rows"]
    assert (code, answers["file"] == answers["digest"]) == (1, False)


def test_segments_and_the_archive_give_the_same_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Shop(tmp_path, 1200)
    shop.close()
    _, before = replay(capsys=capsys, data=shop.data, models=shop.models)
    keeper = Keeper(Settings(data=shop.data))
    keeper.step()
    keeper.step()
    assert segments(shop.data / "journal") == []
    code, after = replay(capsys=capsys, data=shop.data, models=shop.models)
    assert code == 0
    for report in (before, after):
        for answers in report["answers"]:
            answers.pop("run_s")
    assert after["answers"] == before["answers"]
    assert after["done"] == before["done"]


def test_another_version_is_run_on_the_same_requests_and_judged_by_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path, 1500)
    shop.close()
    session = load(shop.models, "m", 2).session
    assert session is not None
    events = []
    truth: dict[str, bool] = {}
    rows = {}
    for path in segments(shop.data / "journal"):
        segment = Segment.open(path)
        if segment.spec.version != 1:
            continue
        for row in np.flatnonzero(segment.column("span")[: segment.rows()]).tolist():
            name = f"{segment.spec.prefix}{row:08x}"
            rows[name] = segment.inputs["x"][row]
            # The truth follows version 2, with noise: it must come out better.
            score = float(session.run({"x": rows[name][None]}, ["score"])[0][0, 0])
            truth[name] = bool(np.random.default_rng(row).random() < 0.1 + 0.8 * (score > 0.5))
            about = {"name": "sick", "model": "m", "prediction_id": name, "row": 0, "value": truth[name]}
            events.append(Event(feedback_id=IdClock.new_id(), received_ns=int(segment.column("time_ns")[row]), **about))
    log = Log(shop.data / "feedback", 1 << 24, 3600)
    log.write(events)
    log.close()

    class Declared:
        def of(self, model: str) -> dict[str, FeedbackRule]:
            return {"sick": FeedbackRule(type="boolean")}

        def declaring(self, name: str) -> dict[str, FeedbackRule]:
            return {"m": FeedbackRule(type="boolean")}

    writer = Writer(dialect.location(shop.data), shop.data, Declared(), SystemClock())
    while writer.step():
        pass
    writer.close()
    flags = ["--version", "1", "--against", "2", "--label", "sick"]
    code, report = replay(*flags, capsys=capsys, data=shop.data, models=shop.models)
    figures = report["figures"]
    assert code == 1
    assert report["answers"][0]["beyond"] == report["answers"][0]["rows"] > 500
    assert figures["logged"]["rows"] == figures["replayed"]["rows"] == len(events)
    scores = np.array([float(session.run({"x": x[None]}, ["score"])[0][0, 0]) for x in rows.values()])
    labels = np.array(list(truth.values()))
    assert figures["replayed"]["brier"] == pytest.approx(np.mean((scores - labels) ** 2), abs=1e-6)
    assert figures["replayed"]["accuracy"] == pytest.approx(np.mean((scores > 0.5) == labels), abs=2e-3)
    pairs = (scores[labels][:, None] > scores[~labels]).mean()
    assert figures["replayed"]["auc"] == pytest.approx(pairs, abs=figures["replayed"]["auc_error"] + 1e-6)
    assert figures["replayed"]["auc"] > figures["logged"]["auc"] + 0.1


def test_a_replay_that_was_stopped_goes_on_where_it_was(
    closed: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The replay ends after its first source. 2. It is started again with the same report.
    Result: what was done is not done again, and the report is as if nothing had happened.
    """
    path = tmp_path / "report.json"
    where: dict[str, Any] = {"capsys": capsys, "data": closed.data, "models": closed.models}
    _, whole = replay(**where)
    from gateway.replay.replay import Replayer

    source = Replayer._source
    seen = []

    def stopped(self: Replayer, one: Any, opened: Any, answers: Any) -> None:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(one.prefix)
        source(self, one, opened, answers)

    monkeypatch.setattr(Replayer, "_source", stopped)
    with pytest.raises(KeyboardInterrupt):
        replay("--report", str(path), **where)
    half = json.loads(path.read_bytes())
    assert list(half["done"]) == seen
    assert (half["complete"], half["reproduced"]) == (False, False)
    monkeypatch.setattr(Replayer, "_source", source)
    capsys.readouterr()
    code, report = replay("--report", str(path), **where)
    assert code == 0
    for each in (*whole["answers"], *report["answers"]):
        each.pop("run_s")
    assert report["answers"] == whole["answers"]
    assert report["done"] == whole["done"]
    assert json.loads(path.read_bytes())["reproduced"] is True
    assert main(["replay", "m", "--data", str(closed.data), "--report", str(path), "--rtol", "0.1"]) == 2
    assert "is of another replay than this one" in capsys.readouterr().err


def test_a_journal_that_is_still_written_is_replayed_up_to_its_last_whole_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path, 600)
    shop.gateway.journal.tick(0.0)
    path = tmp_path / "report.json"
    code, first = replay("--report", str(path), capsys=capsys, data=shop.data, models=shop.models)
    assert code == 0
    assert sum(each["rows"] for each in first["answers"]) == 600
    shop.gateway.send([[document(x=shop.values[:5])], [document(x=shop.values[5:6])]], version=2)
    shop.close()
    code, then = replay("--report", str(path), capsys=capsys, data=shop.data, models=shop.models)
    assert code == 0
    assert sum(each["rows"] for each in then["answers"]) == sum(each["same"] for each in then["answers"]) == 606


def test_requests_of_varying_shapes_are_replayed_as_they_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx_models.build(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)],
        [("x", TensorProto.FLOAT, ("N", "L"))],
        [("y", TensorProto.FLOAT, ("N", 1))],
        {"axes": np.array([1], np.int64)},
    )
    models, data = tmp_path / "models", tmp_path / "data"
    onnx_models.put(models, "m", 1, model, TOML)
    gateway = Gateway(data, load(models, "m", 1))
    rng = np.random.default_rng(2)
    turns = [[document(x=normal(int(rng.integers(1, 4)), int(width), 1)) for width in (5, 5, 7, 900)] for _ in range(9)]
    gateway.send(turns)
    assert not gateway.door.errors
    for segment in gateway.close():
        archive.write(segment, data / "archive")
        segment.path.unlink()
    code, report = replay(capsys=capsys, data=data, models=models)
    (answers,) = report["answers"]
    assert code == 0
    assert answers["rows"] == answers["same"] == 36


def test_pieces_of_large_requests_and_outputs_that_nobody_asked_for_are_replayed_as_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = Path(__file__).parents[2] / "examples"
    gateway = Gateway(tmp_path, load(models, "tiny", 1))
    label = document(x=normal(1, 30)) | {"outputs": [{"name": "label"}]}
    gateway.send([[document(x=normal(500, 30))], [label], [document(x=normal(2, 30, 2)), label]], "tiny")
    assert not gateway.door.errors
    gateway.close()
    assert main(["replay", "tiny", "--data", str(tmp_path), "--models", str(models), "--json"]) == 0
    (answers,) = json.loads(capsys.readouterr().out)["answers"]
    assert answers["rows"] == answers["same"] == 504
    assert answers["regrouped"] == 0
    assert {name: each["rows"] for name, each in answers["outputs"].items()} == {"label": 504, "probabilities": 503}


def test_requests_that_ran_alone_after_their_batch_had_failed_are_reproduced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1. One request of a batch makes the model raise, so the others run again, each alone.
    Result: they are reproduced; the one that failed is counted as not answered.
    """
    model = onnx_models.build(
        [
            helper.make_node("Cast", ["x"], ["at"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "at"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ("N", 1))],
        [("y", TensorProto.FLOAT, ("N", 1))],
        {"table": normal(1, 8)[0]},
    )
    models, data = tmp_path / "models", tmp_path / "data"
    onnx_models.put(models, "m", 1, model, TOML)
    gateway = Gateway(data, load(models, "m", 1))
    gateway.send([[document(x=np.array([[value]], np.float32)) for value in (1, 2, 99, 3)]])
    assert [error.code for error in gateway.door.errors] == ["model-failed"]
    gateway.close()
    code, report = replay(capsys=capsys, data=data, models=models)
    (answers,) = report["answers"]
    assert code == 0
    assert answers["rows"] == answers["same"] == 3
    assert answers["skipped"] == {"the model gave no answer to them then": 1}


def test_rows_that_cannot_be_run_are_counted_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Shop(tmp_path, 300)
    for segment in shop.close():
        archive.write(segment, shop.data / "archive")
        segment.path.unlink()
    places = shelves.places(shop.data / "archive")
    stripped = next(place for place in places if place.version == 1)
    archive.strip(stripped.path)
    (shop.models / "m" / "2" / "model.onnx").unlink()
    code, report = replay(capsys=capsys, data=shop.data, models=shop.models)
    one, two = sorted(report["answers"], key=lambda each: each["version"])
    assert code == 1
    assert one["skipped"]["their inputs are not kept"] > 0
    assert two["rows"] == 0
    assert two["missing"] == "m version 2 is not in the model folder"
    assert main(["replay", "nobody", "--data", str(shop.data)]) == 1
    assert "no predictions of model 'nobody'" in capsys.readouterr().err


def test_damage_in_the_journal_and_in_the_archive_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Shop(tmp_path, 300)
    one, two = shop.close()[:2]
    data = bytearray(one.path.read_bytes())
    data[next(column.offset for column in one.spec.columns if column.group == "input") + 1] ^= 1
    one.path.write_bytes(data)
    archive.write(two, shop.data / "archive")
    two.path.unlink()
    (place,) = shelves.places(shop.data / "archive")
    data = bytearray(place.path.read_bytes())
    data[len(data) // 2] ^= 4
    place.path.write_bytes(data)
    code, report = replay(capsys=capsys, data=shop.data, models=shop.models)
    assert code == 1
    assert len(report["damaged"]) == 2
    assert any("do not fit their checksum" in words for words in report["damaged"])
    assert any(f"{two.spec.prefix}.parquet cannot be read" in words for words in report["damaged"])


def test_strings_and_several_inputs_of_the_flights_example_are_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = Path(__file__).parents[2] / "examples"
    flights = load(models, "flights", 2)
    gateway = Gateway(tmp_path, flights)
    rng = np.random.default_rng(0)

    def flight(rows: int) -> dict[str, Any]:
        cities = np.array([["UA"], ["JFK"], ["FLL"]], object)
        return document(
            **{
                spec.name: cities[rng.integers(0, 3, rows)] if spec.datatype == "BYTES" else normal(rows, 1, rows)
                for spec in flights.contract.inputs
            }
        )

    gateway.send([[flight(int(rows)) for rows in rng.integers(1, 4, 8)] for _ in range(20)], "flights")
    gateway.close()
    assert main(["replay", "flights", "--data", str(tmp_path), "--models", str(models)]) == 0
    assert "reproduced: " in capsys.readouterr().out
    assert main(["replay", "flights", "--data", str(tmp_path), "--models", str(models), "--against", "1"]) == 1
    assert "run with version 1" in capsys.readouterr().out
