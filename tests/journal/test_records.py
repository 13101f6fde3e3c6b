"""What becomes of requests in the journal: rules of what is kept, strings, varying shapes, several rows, failures."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from gateway.errors import HeadgateError
from gateway.journal import keep
from gateway.journal.keep import JournalRule, KeepRule
from gateway.journal.reader import Locator, Segment, segments
from gateway.models.config import ModelConfig
from tests.inference.fakes import FakeSession, servable
from tests.journal.world import FIXED, FREE, MIXED, World, after, item, numbers, with_rule


def test_each_row_of_a_request_has_a_record_of_its_own(tmp_path: Path) -> None:
    world = after(World(tmp_path, with_rule(FIXED)), numbers((1, 2)), numbers((3, 4), (5, 6)), numbers((7, 8)))
    one, two, three = world.ids()
    locator = Locator(tmp_path)
    assert [locator.record(each).inputs["x"].tolist() for each in (one, two, three)] == [[1, 2], [3, 4], [7, 8]]
    assert locator.record(f"{two}#1").inputs["x"].tolist() == [5, 6]
    assert locator.record(f"{two}#1").outputs["y"].tolist() == [5, 6]
    assert locator.record(f"{two}#2") is None
    assert locator.find(two).span == 2
    assert {record.meta["batch"] for record in world.records()} == {4}
    assert all(record.meta["latency_ns"] > 0 for record in world.records())


def test_strings_stand_in_the_frame_of_their_batch(tmp_path: Path) -> None:
    cities = ["Łódź", "", "New York\n", "x" * 1000]
    documents = [
        {"inputs": [item("x", "FP32", [1, 2], [index, 0]), item("city", "BYTES", [1, 1], [city])]}
        for index, city in enumerate(cities)
    ]
    world = after(World(tmp_path, with_rule(MIXED)), *documents)
    assert [record.inputs["city"][0] for record in world.records()] == cities
    assert [record.inputs["x"][0] for record in world.records()] == [0, 1, 2, 3]


def test_varying_shapes_and_requests_of_no_rows_are_kept_whole(tmp_path: Path) -> None:
    world = after(
        World(tmp_path, with_rule(FREE)),
        {"inputs": [item("x", "FP32", [2, 3], [1, 2, 3, 4, 5, 6])]},
        {"inputs": [item("x", "FP32", [1, 1], [7])]},
        {"inputs": [item("x", "FP32", [0, 5], [])]},
    )
    wide, single, empty = world.records()
    assert wide.inputs["x"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert wide.outputs["y"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert Locator(tmp_path).record(wide.prediction_id + "#1").inputs["x"].tolist() == [4, 5, 6]
    assert single.inputs["x"].tolist() == [[7]]
    assert empty.inputs["x"].shape == (0, 5)


def test_of_a_varying_shape_a_digest_tells_what_it_was(tmp_path: Path) -> None:
    world = World(tmp_path, with_rule(FREE, x=KeepRule("digest")))
    after(world, {"inputs": [item("x", "FP32", [2, 3], [1, 2, 3, 4, 5, 6])]})
    (record,) = world.records()
    values = np.arange(1, 7, dtype="<f4")
    assert record.frame["inputs"]["x"]["digest"] == xxhash.xxh3_128_digest(values.tobytes())
    assert record.frame["inputs"]["x"]["s"] == [2, 3]
    assert record.outputs["y"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_what_a_client_calls_its_request_is_kept_with_its_key(tmp_path: Path) -> None:
    document = numbers((1, 2)) | {"id": "order-7"}
    world = after(World(tmp_path, with_rule(FIXED)), document, key="customer-3", request_id="trace-9")
    (record,) = world.records()
    assert [note[1:3] for note in record.frame["notes"]] == [["trace-9", "order-7"]]
    assert record.meta["key"] == xxhash.xxh3_64_intdigest(b"customer-3")


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (KeepRule("none"), None),
        (KeepRule("full", redact="drop"), None),
        (KeepRule("full", redact="mask"), [0.0, 0.0]),
        (KeepRule("full", redact="bucket", width=10), [10.0, -30.0]),
        (KeepRule("sampled", rate=1.0), [17.5, -21.0]),
        (KeepRule("digest"), None),
        (KeepRule("digest", redact="bucket", width=10), None),
        (KeepRule("digest", redact="mask"), None),
    ],
    ids=["none", "drop", "mask", "bucket", "sampled", "digest", "digest of buckets", "digest of a mask"],
)
def test_an_input_is_kept_as_its_rule_says_and_never_otherwise(
    tmp_path: Path, rule: KeepRule, kept: list[float] | None
) -> None:
    world = World(tmp_path, with_rule(FIXED, x=rule, y=KeepRule("none")))
    after(world, numbers((17.5, -21.0)))
    assert json.loads(world.door.bodies[0])["outputs"][0]["data"] == [17.5, -21.0], "what is kept changed the answer"
    (record,) = world.records()
    found = record.inputs.get("x")
    assert (None if found is None else np.asarray(found).tolist()) == kept
    if rule.keep == "digest":
        seen = {"": [17.5, -21.0], "bucket": [10.0, -30.0], "mask": [0.0, 0.0]}[rule.redact]
        assert record.frame["digest"]["x"] == xxhash.xxh3_128_digest(np.array(seen, "<f4").tobytes())
        summary = [min(seen), max(seen), sum(seen) / 2, 0.0]
        assert np.frombuffer(record.frame["summary"]["x"], "<f4").tolist() == summary
    world.pipeline.close()
    (path,) = segments(tmp_path / "journal")
    written = path.read_bytes() + (
        path.with_suffix(".side").read_bytes() if path.with_suffix(".side").exists() else b""
    )
    raw = np.array([17.5, -21.0], "<f4").tobytes()
    assert (np.float32(17.5).tobytes() in written) == (
        rule.keep == "sampled" or (rule.keep, rule.redact) == ("digest", "")
    )
    assert (raw in written) == (rule.keep == "sampled"), "what must not be written is somewhere in the files"
    words = Segment.open(path).spec.kept["x"]
    assert words.split()[0] == ("none" if rule.redact == "drop" else rule.keep)
    assert rule.redact in words


def test_what_a_model_failed_on_is_kept_also_where_only_a_sample_would_be(tmp_path: Path) -> None:
    def fails(inputs: Any, outputs: Any) -> Any:
        raise RuntimeError("no")

    version = servable(FakeSession(fails), FIXED)
    rule = JournalRule(tensors={"x": KeepRule("sampled", rate=1e-9)})
    version.config = ModelConfig(journal=rule)
    world = after(World(tmp_path, version), numbers((1.5, 2.5)))
    assert world.door.errors[0].code == "model-failed"
    (path,) = segments(tmp_path / "journal")
    segment = Segment.open(path)
    assert segment.column("status")[0] == 500
    frame = segment.frame(0)
    assert frame is not None
    assert frame["code"] == "model-failed"
    assert np.frombuffer(frame["inputs"]["x"]["b"], "<f4").tolist() == [1.5, 2.5]


def test_of_several_rows_those_that_are_sampled_are_shown_and_the_others_are_not(tmp_path: Path) -> None:
    world = World(tmp_path, with_rule(FIXED, x=KeepRule("sampled", rate=0.5), y=KeepRule("sampled", rate=0.5)))
    rows = [(float(number), -float(number)) for number in range(40)]
    after(world, numbers(*rows[:20]), *[numbers(row) for row in rows[20:]])
    many = world.ids()[0]
    names = [f"{many}#{part}" for part in range(20)] + world.ids()[1:]
    found = [Locator(tmp_path).record(name) for name in names]
    seen = [record.inputs["x"].tolist() if "x" in record.inputs else None for record in found]
    assert 5 < sum(values is not None for values in seen) < 35
    assert all(values in (None, list(row)) for values, row in zip(seen, rows, strict=True))
    assert [set(record.outputs) for record in found] == [{"y"} if record.inputs else set() for record in found]


@pytest.mark.parametrize("rule", [KeepRule(redact="hmac"), KeepRule("none"), KeepRule("digest", redact="mask")])
def test_why_a_request_was_refused_is_not_kept_where_that_would_tell_a_value_that_must_not_be(
    tmp_path: Path, rule: KeepRule
) -> None:
    document = {"inputs": [item("x", "FP32", [1, 2], [1, 2]), item("city", "BYTES", [1, 1], [12345678])]}
    for name, each in (("private", rule), ("public", KeepRule())):
        world = after(World(tmp_path / name, with_rule(MIXED, city=each)), document)
        assert "12345678" in world.door.errors[0].message, "its client is told"
        world.pipeline.close()
        (path,) = segments(tmp_path / name / "journal")
        assert (b"12345678" in path.with_suffix(".side").read_bytes()) == (name == "public")


def test_redacted_strings_can_be_told_apart_but_not_read(tmp_path: Path) -> None:
    def document(city: str) -> dict[str, Any]:
        return {"inputs": [item("x", "FP32", [1, 2], [0, 0]), item("city", "BYTES", [1, 1], [city])]}

    world = World(tmp_path, with_rule(MIXED, city=KeepRule("full", redact="hmac")))
    after(world, document("Oslo"), document("Rome"), document("Oslo"))
    first, second, third = (str(record.inputs["city"][0]) for record in world.records())
    assert first == third != second
    world.pipeline.close()
    assert not any(b"Oslo" in path.read_bytes() for path in (tmp_path / "journal").iterdir())


def test_the_same_keys_are_sampled_every_time(tmp_path: Path) -> None:
    world = World(tmp_path, with_rule(FIXED, x=KeepRule("sampled", rate=0.5)))

    async def main() -> None:
        for _ in range(2):
            for key in range(200):
                world.send(numbers((key, 0)), key=f"customer {key}")
            for _ in range(20):
                await asyncio.sleep(0)

    asyncio.run(main())
    kept: list[float] = []
    for path in segments(tmp_path / "journal"):
        for _, frame in Segment.open(path).frames():
            for sample in frame.get("samples", {}).values():
                kept += np.frombuffer(sample["values"]["b"], "<f4").reshape(sample["values"]["s"])[:, 0].tolist()
    assert len(kept) == 2 * len(set(kept)), "a key was sampled once and not the next time"
    assert 60 < len(set(kept)) < 140


def test_a_refused_request_is_a_record_with_its_reason(tmp_path: Path) -> None:
    world = World(tmp_path, with_rule(FIXED))
    after(world, numbers((1, 2)), {"inputs": []}, request_id="seven")
    assert isinstance(world.door.errors[0], HeadgateError)
    frames = [
        frame
        for path in segments(tmp_path / "journal")
        for _, frame in Segment.open(path).frames()
        if "refused" in frame
    ]
    assert [(frame["refused"], frame["status"], frame["request_id"]) for frame in frames] == [
        ("invalid-request", 400, "seven")
    ]
    assert "inputs" in frames[0]["message"]


@pytest.mark.parametrize(
    ("name", "rule", "words"),
    [
        ("z", KeepRule("none"), "names no input or output"),
        ("city", KeepRule("full", redact="bucket"), "strings have no buckets"),
        ("x", KeepRule("full", redact="hmac"), "hmac is for strings"),
    ],
)
def test_a_rule_that_fits_no_tensor_is_refused_by_name(name: str, rule: KeepRule, words: str) -> None:
    with pytest.raises(ValueError, match=rf"journal\.tensors\.{name}.*{words}"):
        keep.check({name: rule}, (*MIXED.inputs, *MIXED.outputs))
