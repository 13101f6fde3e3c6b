"""The archive holds what segments held, bit for bit, and whoever looks for a prediction finds it there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from gateway.journal import archive, ids, shelves
from gateway.journal.columns import source_of
from gateway.journal.keep import JournalRule, KeepRule
from gateway.journal.keeper import Keeper
from gateway.journal.reader import Damaged, Locator, Record, Segment
from gateway.journal.segment import Segment as Writing
from gateway.models.config import ModelConfig
from gateway.models.servable import Servable
from gateway.settings import Settings
from gateway.types import Contract, TensorSpec
from tests.inference.fakes import FakeSession, servable
from tests.journal.rig import Gateway, document, normal

PLAIN = Contract((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),), batched=True)
MIXED = Contract(
    (TensorSpec("x", "FP32", (-1, 2, 2)), TensorSpec("city", "BYTES", (-1, 1)), TensorSpec("n", "INT64", (-1,))),
    (TensorSpec("y", "FP32", (-1, 2, 2)), TensorSpec("name", "BYTES", (-1, 2))),
    batched=True,
)
FREE = Contract((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),), batched=True)
UNBATCHED = Contract((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (2, -1)),), batched=False)


def with_rules(contract: Contract, run: Any = None, **rules: KeepRule) -> Servable:
    version = servable(FakeSession(run) if run else FakeSession(), contract)
    version.config = ModelConfig(journal=JournalRule(tensors=rules))
    return version


def moved(data: Path, segments: list[Segment]) -> Locator:
    """Archive segments and delete them; a fresh locator."""
    for segment in segments:
        archive.write(segment, data / "archive")
        segment.path.unlink()
        segment.path.with_suffix(".side").unlink(missing_ok=True)
    return Locator(data)


def as_bits(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (value.dtype.str, value.shape, value.tolist() if value.dtype == object else value.tobytes())
        for name, each in values.items()
        for value in (np.asarray(each, dtype=object if isinstance(each, list | str) else None),)
    }


def all_records(locator: Locator, ids: list[str]) -> Iterator[Record]:
    for name in ids:
        found = locator.find(name)
        assert found is not None
        for part in {*range(min(found.span, 5)), found.span // 2, found.span - 1}:
            record = locator.record(f"{name}#{part}")
            assert record is not None
            yield record


def mixed_run(inputs: Any, outputs: Any) -> tuple[Any, ...]:
    rows = len(inputs["x"])
    found = {"y": inputs["x"] * 2, "name": np.array([["a", str(row)] for row in range(rows)], object)}
    return tuple(found[name] for name in outputs)


def transposed(inputs: Any, outputs: Any) -> tuple[Any, ...]:
    return (np.ascontiguousarray(inputs["x"].T),)


def some_mixed(rows: int, seed: int) -> dict[str, Any]:
    cities = np.array([["Łódź"], [""], ["New York\n"]], object)[np.arange(rows) % 3]
    return document(x=normal(rows, 4, seed).reshape(rows, 2, 2), city=cities, n=np.arange(rows) - 5)


WORLDS = {
    "plain": (with_rules(PLAIN), [[document(x=normal(n, 3, n))] for n in (1, 2, 7)] + [[document(x=normal(5000, 3))]]),
    "mixed": (with_rules(MIXED, mixed_run), [[some_mixed(1, 1), some_mixed(3, 2)], [some_mixed(4500, 3)]]),
    "free": (with_rules(FREE), [[document(x=normal(2, 3))], [document(x=normal(1, 1)), document(x=normal(3, 0))]]),
    "unbatched": (with_rules(UNBATCHED, transposed), [[document(x=normal(3, 2))], [document(x=normal(1, 2))]]),
}


@pytest.mark.parametrize("name", WORLDS)
def test_every_archived_record_is_what_the_segment_held(name: str, tmp_path: Path) -> None:
    """1. Requests of one and many rows are answered. 2. Their segments are archived and deleted.
    Result: every row is found by its id, with the same values, times and names, bit for bit.
    """
    version, turns = WORLDS[name]
    gateway = Gateway(tmp_path, version)
    gateway.send(turns)
    assert not gateway.door.errors
    segments = gateway.close()
    found = [Locator(tmp_path).find(each) for each in gateway.ids]
    before = list(all_records(Locator(tmp_path), gateway.ids))
    locator = moved(tmp_path, segments)
    assert [locator.find(each) for each in gateway.ids] == [
        each._replace(where="archive") for each in found if each is not None
    ]
    after = list(all_records(locator, gateway.ids))
    assert len(after) == len(before) > 0
    for old, new in zip(before, after, strict=True):
        assert as_bits(new.inputs) == as_bits(old.inputs)
        assert as_bits(new.outputs) == as_bits(old.outputs)
        same = ("latency_ns", "queue_ns", "run_ns", "batch", "status", "time_ns")
        assert all(new.meta[each] == old.meta[each] for each in same if old.meta["span"] or each in ("batch", "status"))
        assert (new.prediction_id, new.digest) == (old.prediction_id, old.digest)


def test_numbers_keep_every_bit_also_nan_and_negative_zero(tmp_path: Path) -> None:
    bits = np.array([0x7FC00001, 0xFFC00002, 0x80000000, 0x7F800000, 0x00000001, 0x3F800000], np.uint32)
    values = bits.view(np.float32).reshape(2, 3)
    gateway = Gateway(tmp_path, with_rules(PLAIN))
    gateway.send([[document(x=np.ones((2, 3), np.float32))]])
    (segment,) = gateway.close()
    # Not every NaN can be sent as JSON: the values are put in their place, and the checksums are taken away.
    path = segment.path
    data = bytearray(path.read_bytes())
    at = next(column.offset for column in segment.spec.columns if column.group == "input")
    data[at : at + values.nbytes] = values.tobytes()
    for begin, size in ((segment.spec.control_at + 16, 8), (segment.spec.extents_at, 64)):
        data[begin : begin + size] = bytes(size)
    path.write_bytes(data)
    locator = moved(tmp_path, [Segment.open(path)])
    found = [locator.record(f"{gateway.ids[0]}#{part}") for part in (0, 1)]
    assert b"".join(each.inputs["x"].tobytes() for each in found if each) == values.tobytes()


def test_what_failed_or_was_refused_or_called_something_is_in_the_archive_too(tmp_path: Path) -> None:
    def fails(inputs: Any, outputs: Any) -> tuple[Any, ...]:
        if (inputs["x"] > 100).any():
            raise RuntimeError("no")
        return (inputs["x"] + 1,)

    gateway = Gateway(tmp_path, with_rules(PLAIN, fails))
    bad = document(x=np.full((1, 3), 666, np.float32))
    gateway.send(
        [
            [document(x=normal(1, 3)) | {"id": "order-7", "_request_id": "r9", "_key": "c1"}, bad],
            [{"inputs": []}, document(x=normal(2, 3))],
        ]
    )
    assert [error.code for error in gateway.door.errors] == ["model-failed", "invalid-request"]
    locator = moved(tmp_path, gateway.close())
    table = pd.read_parquet(tmp_path / "archive")
    assert table["status"].value_counts().to_dict() == {200: 3, 500: 1, 400: 1}
    called = table[table["id"] == "order-7"].iloc[0]
    assert (called["request_id"], called["prediction_id"]) == ("r9", gateway.ids[0])
    assert called["key"] == locator.find(gateway.ids[0]).key  # type: ignore[union-attr]
    failed = table[table["status"] == 500].iloc[0]
    assert (failed["code"], failed["output_y"]) == ("model-failed", None)
    assert failed["request_id"] == failed["prediction_id"] != gateway.ids[0]
    assert failed["input_x"].tolist() == [666, 666, 666]
    refused = table[table["status"] == 400].iloc[0]
    assert pd.isna(refused["prediction_id"])
    assert "x" in refused["message"]
    record = locator.record(gateway.ids[0])
    assert record is not None
    assert record.frame["notes"] == [[0, "r9", "order-7", ""]]


def test_an_output_that_nobody_asked_for_has_no_value(tmp_path: Path) -> None:
    outputs = (TensorSpec("y", "FP32", (-1, 3)), TensorSpec("z", "FP32", (-1, 3)))
    gateway = Gateway(tmp_path, with_rules(Contract(PLAIN.inputs, outputs, batched=True)))
    one, two = document(x=normal(1, 3)), document(x=normal(1, 3, 2))
    # Of a run, every output is there that any of its requests asked for.
    gateway.send([[one | {"outputs": [{"name": "z"}]}], [one, two | {"outputs": [{"name": "z"}]}], [two]])
    assert not gateway.door.errors
    segments = gateway.close()
    before = [Locator(tmp_path).record(name) for name in gateway.ids]
    locator = moved(tmp_path, segments)
    after = [locator.record(name) for name in gateway.ids]
    for found in (before, after):
        assert [set(each.outputs) for each in found if each] == [{"z"}, {"y", "z"}, {"y", "z"}, {"y", "z"}]


def test_what_is_not_kept_whole_is_archived_as_it_is_kept(tmp_path: Path) -> None:
    rules = {"x": KeepRule("digest"), "city": KeepRule(redact="mask"), "n": KeepRule("sampled", rate=0.5)}
    version = with_rules(MIXED, mixed_run, **rules, name=KeepRule("none"))
    gateway = Gateway(tmp_path, version)
    gateway.send([[some_mixed(20, 1)], [some_mixed(30, 2)]])
    moved(tmp_path, gateway.close())
    table = pq.read_table(tmp_path / "archive").to_pandas()
    x = np.concatenate([normal(20, 4, 1), normal(30, 4, 2)])
    assert "input_x" not in table
    assert table["digest_input_x"].nunique() == 50
    assert np.stack(table["summary_input_x"])[:, 0] == pytest.approx(x.min(axis=1))
    assert set(table["input_city"]) == {"***"}
    assert "output_name" not in table
    kept = table["input_n"].dropna()
    assert 5 < len(kept) < 45
    expected = np.concatenate([np.arange(20), np.arange(30)]) - 5
    assert kept.tolist() == expected[kept.index].tolist()


def test_duckdb_and_pandas_read_it_as_it_lies(tmp_path: Path) -> None:
    values = normal(50, 3)
    gateway = Gateway(tmp_path, with_rules(PLAIN))
    gateway.send([[document(x=values[at : at + 1]) for at in range(start, start + 10)] for start in range(0, 50, 10)])
    moved(tmp_path, gateway.close())
    files = f"{tmp_path}/archive/**/*.parquet"
    row = duckdb.execute(
        "SELECT count(*), sum(list_sum(output_y)), any_value(model), any_value(version), max(epoch_ns(time)) "
        "FROM read_parquet($files, hive_partitioning = true) WHERE model = 'm' AND status = 200",
        {"files": files},
    ).fetchone()
    assert row is not None
    assert row[0] == 50
    assert row[1] == pytest.approx(float(values.sum()), abs=1e-4)
    assert row[2:4] == ("m", 1)
    frame = pd.read_parquet(tmp_path / "archive", filters=[("model", "==", "m")])
    assert np.stack(frame["input_x"]).tobytes() == values.tobytes()
    assert frame["prediction_id"].tolist() == gateway.ids
    assert (frame["time_ns"] // 1000 == frame["time"].astype("int64")).all()


def test_a_file_without_its_inputs_still_finds_its_predictions(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, with_rules(PLAIN))
    gateway.send([[document(x=normal(5, 3))]])
    moved(tmp_path, gateway.close())
    (place,) = shelves.places(tmp_path / "archive")
    before = pd.read_parquet(place.path)
    archive.strip(place.path)
    after = pd.read_parquet(place.path)
    assert source_of(archive.read_schema(place.path)).bare
    assert after["input_x"].isna().all()
    pd.testing.assert_frame_equal(before.drop(columns="input_x"), after.drop(columns="input_x"))
    record = Locator(tmp_path).record(gateway.ids[0] + "#3")
    assert record is not None
    assert record.inputs == {}
    assert record.outputs["y"].shape == (3,)
    shelves.remove(place.path, tmp_path / "archive")
    assert Locator(tmp_path).find(gateway.ids[0]) is None
    assert [path.name for path in (tmp_path / "archive").iterdir()] == ["_index"]


def test_a_segment_with_a_flipped_bit_is_not_archived(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, with_rules(PLAIN))
    gateway.send([[document(x=normal(64, 3))]])
    (segment,) = gateway.close()
    data = bytearray(segment.path.read_bytes())
    data[next(column.offset for column in segment.spec.columns if column.group == "output") + 5] ^= 1
    segment.path.write_bytes(data)
    with pytest.raises(Damaged, match="rows 0 to 63 do not fit their checksum"):
        archive.write(Segment.open(segment.path), tmp_path / "archive")
    assert shelves.places(tmp_path / "archive") == []
    assert list((tmp_path / "archive").rglob("*.parquet*")) == []


def test_an_archive_that_is_not_what_was_written_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The file is changed between writing and comparing. Result: it is not published."""
    gateway = Gateway(tmp_path, with_rules(PLAIN))
    gateway.send([[document(x=normal(64, 3))]])
    (segment,) = gateway.close()
    write = archive._write

    def fewer(path: Path, columns: Any, pieces: Any) -> int:
        return write(path, columns, iter([next(pieces).slice(0, 63)]))

    monkeypatch.setattr(archive, "_write", fewer)
    with pytest.raises(Damaged, match="is not what it should be"):
        archive.write(segment, tmp_path / "archive")
    assert shelves.places(tmp_path / "archive") == []


def test_the_same_date_leads_from_an_id_to_its_file(tmp_path: Path) -> None:
    prefix = "0190a5f0-1234-8abc-9def-0123"
    assert shelves.opened_ns(prefix) == 0x0190A5F01234 * 1_000_000
    assert shelves.date_of(prefix) == "2024-07-12"
    model = "a.b_c-d"
    path = shelves.path_of(tmp_path, model, 3, prefix)
    path.parent.mkdir(parents=True)
    path.touch()
    assert shelves.find(tmp_path, prefix) == path
    assert shelves.places(tmp_path) == [shelves.Place(path, model, 3, prefix)]
    assert shelves.places(tmp_path, model, 3) == shelves.places(tmp_path)
    assert shelves.places(tmp_path, model, 4) == []
    shutil.rmtree(tmp_path / path.relative_to(tmp_path).parts[0])
    assert shelves.find(tmp_path, prefix) is None


def test_of_rows_that_nobody_could_write_any_more_an_archive_is_made_as_of_others(tmp_path: Path) -> None:
    """A worker is killed in its first run: the rows of its segment are taken, and none was written."""
    gateway = Gateway(tmp_path, with_rules(PLAIN))
    gateway.send([[document(x=normal(200, 3))]])
    (segment,) = gateway.close()
    cut = Writing(tmp_path / "journal", msgspec.structs.replace(segment.spec, prefix=ids.new_prefix().decode()))
    cut._fill = 100
    cut.finish()
    made = archive.write(Segment.open(cut.path), tmp_path / "archive")
    assert (made.rows, made.damage) == (0, ())
    assert made.path.stat().st_mode & 0o777 == 0o640
    assert pd.read_parquet(made.path).empty
    assert Keeper(Settings(data=tmp_path)).step().troubles == []
