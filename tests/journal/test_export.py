"""Exports against a join that pandas does on its own, from what the test itself sent and said."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from gateway.cli import main
from gateway.feedback.event import Event, IdClock, Source
from gateway.feedback.log import Log
from gateway.feedback.rules import FeedbackRule
from gateway.journal import archive
from gateway.journal.cli import moment
from gateway.journal.reader import Locator
from gateway.ledger import dialect
from gateway.ledger.service import SystemClock, Writer
from gateway.models.servable import Servable
from gateway.progress import Progress
from gateway.types import Array, Contract, TensorSpec
from tests.inference.fakes import FakeSession, servable
from tests.journal.rig import Gateway, document, normal

CONTRACT = Contract(
    (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("city", "BYTES", (-1, 1))),
    (TensorSpec("y", "FP32", (-1, 2)),),
    batched=True,
)
RULES = {
    "late": FeedbackRule(type="boolean", join_window="1h", maturity="30m"),
    "stars": FeedbackRule(type="integer", min=1, max=5),
}
HOUR_NS = 3_600_000_000_000
CITIES = np.array(["Łódź", "", "New York"], object)


class Declared:
    """The declarations of one model."""

    def of(self, model: str) -> Mapping[str, FeedbackRule]:
        """See Declarations."""
        return RULES if model == "m" else {}

    def declaring(self, name: str) -> dict[str, FeedbackRule]:
        """See Declarations."""
        return {"m": RULES[name]} if name in RULES else {}


def answer(inputs: Any, outputs: Any) -> tuple[Array, ...]:
    x = inputs["x"]
    return (np.stack([x.sum(axis=1), x[:, 0]], axis=1).astype(np.float32),)


def version(number: int) -> Servable:
    return servable(FakeSession(answer), CONTRACT, version=number)


class Served(NamedTuple):
    """A data folder, and by the test's own account every row that was answered, in a frame."""

    data: Path
    rows: pd.DataFrame


def serve(data: Path) -> Served:
    """Requests of one to many rows to two versions; those of the second are in the archive."""
    rows = []
    rng = np.random.default_rng(5)
    for number in (1, 2, 1):
        gateway = Gateway(data, version(number))
        sent: list[tuple[Array, Array]] = []
        for count in (1, 1, 2, 40, 1, 5000):
            sent.append((normal(count, 3, int(rng.integers(1 << 30))), rng.choice(CITIES, (count, 1))))
        documents = [document(x=x, city=city) for x, city in sent]
        gateway.send([documents[:4], documents[4:]])
        segments = gateway.close()
        answered = sorted(gateway.ids)
        assert len(answered) == len(sent)
        for name, (x, city) in zip(gateway.ids, sent, strict=True):
            found = Locator(data).find(name)
            assert found is not None
            for part in range(len(x)):
                row = {"prediction_id": name, "row": part, "version": number, "time_ns": found.time_ns}
                rows.append(row | {"x": x[part], "city": city[part, 0]})
        if number == 2:
            for segment in segments:
                if segment.spec.version == 2:
                    archive.write(segment, data / "archive")
                    segment.path.unlink()
    return Served(data, pd.DataFrame(rows))


def say(served: Served, seed: int = 1) -> list[Event]:
    """Labels that come twice, late, early, in conflict, for predictions that nobody made, or are taken back."""
    rng = np.random.default_rng(seed)
    events = []
    picked = served.rows.iloc[rng.choice(len(served.rows), 3000)]
    for row in picked.itertuples():
        lag_ns = int(rng.choice([-HOUR_NS // 60, HOUR_NS // 4, HOUR_NS - 1, HOUR_NS + 1, 5 * HOUR_NS]))
        received_ns = row.time_ns + lag_ns + int(rng.integers(1000))
        name = str(rng.choice(["late", "stars"]))
        put = Event(
            feedback_id=IdClock.new_id(),
            received_ns=received_ns,
            model="m",
            name=name,
            value=bool(rng.random() < 0.3) if name == "late" else int(rng.integers(1, 6)),
            prediction_id=str(row.prediction_id),
            row=int(row.row),
            source=Source("SYSTEM", str(rng.choice(["a", "b"]))),
            observed_at_ns=int(rng.choice([0, received_ns - int(rng.integers(1000)), row.time_ns])),
        )
        events.append(put)
        if rng.random() < 0.1:
            gone = {"op": "delete", "received_ns": received_ns + 1000, "supersedes": put.feedback_id}
            events.append(Event(feedback_id=IdClock.new_id(), **gone))
    nobody = "0190a5f0-1234-8abc-9def-012300000000"
    events.append(Event(feedback_id=IdClock.new_id(), received_ns=1, name="late", value=True, prediction_id=nobody))
    return events


def fold(served: Served, events: list[Event]) -> None:
    log = Log(served.data / "feedback", 1 << 20, 3600)
    log.write(events)
    log.close()
    writer = Writer(dialect.location(served.data), served.data, Declared(), SystemClock())
    while writer.step():
        pass
    writer.close()


def expected(served: Served, events: list[Event], name: str, as_of_ns: int = 1 << 62) -> pd.DataFrame:
    """The label of each row, as pandas finds it: timely, not withdrawn, no mere repetition, observed last."""
    known = [event for event in events if event.received_ns <= as_of_ns]
    withdrawn = {event.supersedes for event in known if event.op == "delete"}
    said = pd.DataFrame(
        [
            {
                "prediction_id": event.prediction_id,
                "row": event.row or 0,
                "value": event.value,
                "received_ns": event.received_ns,
                "observed": event.observed_at_ns or event.received_ns,
                "stated": event.observed_at_ns,
                "source": event.source.id,
                "id": event.feedback_id,
                "window": (HOUR_NS if name == "late" else 30 * 24 * HOUR_NS),
            }
            for event in known
            if event.op == "put" and event.name == name and event.feedback_id not in withdrawn
        ],
        columns=["prediction_id", "row", "value", "received_ns", "observed", "stated", "source", "id", "window"],
    )
    said = said.merge(served.rows[["prediction_id", "row", "time_ns"]], on=["prediction_id", "row"])
    said = said[said["received_ns"] - said["time_ns"] <= said["window"]]
    # The same again from the same source, at no other time of observation, is no news.
    said = said.sort_values(["received_ns", "id"])
    keep, last = [], {}
    for each in said.itertuples():
        voice = (each.prediction_id, each.row, each.source)
        before = last.get(voice)
        keep.append(before is None or before[0] != each.value or each.stated not in (0, before[1]))
        if keep[-1]:
            last[voice] = (each.value, each.stated)
    said = said[keep]
    said = said.sort_values(["observed", "received_ns", "id"]).groupby(["prediction_id", "row"]).tail(1)
    return said[["prediction_id", "row", "value", "received_ns"]].astype({"received_ns": "Int64"})


def joined(served: Served, events: list[Event], names: list[str], as_of_ns: int = 1 << 62) -> pd.DataFrame:
    frame = served.rows[served.rows["time_ns"] < as_of_ns]
    for name in names:
        labels = expected(served, events, name, as_of_ns).rename(
            columns={"value": f"label_{name}", "received_ns": f"received_{name}"}
        )
        frame = frame.merge(labels, how="left", on=["prediction_id", "row"])
    return frame.sort_values(["prediction_id", "row"]).reset_index(drop=True)


def assert_same(found: pd.DataFrame, wanted: pd.DataFrame, names: list[str]) -> None:
    found = found.sort_values(["prediction_id", "row"]).reset_index(drop=True)
    assert len(found) == len(wanted)
    for column in ("prediction_id", "row", "version"):
        assert found[column].tolist() == wanted[column].tolist()
    assert found["time"].astype("int64").tolist() == (wanted["time_ns"] // 1000).tolist()
    assert np.stack(found["input_x"]).tobytes() == np.stack(wanted["x"]).tobytes()
    assert found["input_city"].tolist() == wanted["city"].tolist()
    assert np.stack(found["output_y"])[:, 1].tobytes() == np.stack(wanted["x"])[:, 0].tobytes()
    for name in names:
        has = wanted[f"label_{name}"].notna()
        assert 0 < has.sum() < len(wanted)
        assert found[f"label_{name}"].notna().tolist() == has.tolist()
        values = found[f"label_{name}"][has]
        assert values.astype(int).tolist() == wanted[f"label_{name}"][has].astype(int).tolist()
        times = found[f"label_{name}_received"][has].astype("int64")
        assert times.tolist() == (wanted[f"received_{name}"][has] // 1000).astype("int64").tolist()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Served, list[Event]]:
    made = serve(tmp_path_factory.mktemp("served"))
    events = say(made)
    fold(made, events)
    return made, events


def run(data: Path, out: Path, *flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["predictions", "export", "m", str(out), "--data", str(data), "--json", *flags]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_the_export_is_what_pandas_joins(
    served: tuple[Served, list[Event]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, events = served
    out = tmp_path / "training.parquet"
    told = run(made.data, out, capsys=capsys)
    wanted = joined(made, events, ["late", "stars"])
    assert_same(pd.read_parquet(out), wanted, ["late", "stars"])
    assert told["rows"] == len(wanted) == 3 * 5045
    assert told["labelled"] == {name: int(wanted[f"label_{name}"].notna().sum()) for name in ("late", "stars")}
    assert told["unused"] == {"late": 0, "stars": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["training.parquet"]


def test_labels_are_those_that_were_known_at_a_moment(
    served: tuple[Served, list[Event]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Result: what was received, or withdrawn, after it counts as if it had not happened, and so do predictions."""
    made, events = served
    times = sorted(made.rows["time_ns"])
    out = tmp_path / "then.parquet"
    for as_of_us in (times[-1] // 1000 + 2, times[len(times) // 2] // 1000 + 1):
        when = pd.Timestamp(as_of_us, unit="us", tz="UTC").isoformat()
        run(made.data, out, "--as-of", when, "--label", "stars", capsys=capsys)
        wanted = joined(made, events, ["stars"], as_of_us * 1000)
        assert_same(pd.read_parquet(out), wanted, ["stars"])
    assert len(wanted) < len(made.rows)


def test_versions_times_and_labelled_rows_can_be_chosen(
    served: tuple[Served, list[Event]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, events = served
    out = tmp_path / "some.parquet"
    wanted = joined(made, events, ["late"])
    told = run(made.data, out, "--version", "2", "--label", "late", "--labelled", capsys=capsys)
    mine = wanted[(wanted["version"] == 2) & wanted["label_late"].notna()]
    assert pd.read_parquet(out)["prediction_id"].tolist() == mine["prediction_id"].tolist()
    assert told["unused"] == {"late": 0}
    middle_us = int(wanted["time_ns"].median()) // 1000
    when = pd.Timestamp(middle_us, unit="us", tz="UTC").isoformat()
    parts = [run(made.data, out, flag, when, "--label", "late", capsys=capsys) for flag in ("--since", "--until")]
    assert sum(each["rows"] for each in parts) == len(wanted)
    assert parts[0]["rows"] == (wanted["time_ns"] >= middle_us * 1000).sum()
    # All of these predictions are younger than the half hour after which their label is mature.
    assert main(["predictions", "export", "m", str(out), "--data", str(made.data), "--matured"]) == 1
    assert "no predictions of model 'm' in that folder, version and time" in capsys.readouterr().err


def test_csv_and_flat_tables_have_a_column_for_each_element(
    served: tuple[Served, list[Event]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, events = served
    wanted = joined(made, events, ["late"])
    table = tmp_path / "flat.parquet"
    run(made.data, table, "--flat", "--no-outputs", "--label", "late", capsys=capsys)
    flat = pd.read_parquet(table).sort_values(["prediction_id", "row"])
    text = tmp_path / "t.csv"
    run(made.data, text, "--no-outputs", "--label", "late", capsys=capsys)
    read = pd.read_csv(text, keep_default_na=False).sort_values(["prediction_id", "row"])
    names = [f"input_x_{index}" for index in range(3)]
    assert flat[names].to_numpy(np.float32).tobytes() == np.stack(wanted["x"]).tobytes()
    assert read[names].to_numpy(np.float32).tobytes() == np.stack(wanted["x"]).tobytes()
    assert read["input_city"].tolist() == wanted["city"].tolist()
    assert set(read["label_late"]) == {"", "true", "false"}
    assert not [name for name in flat if name.startswith("output")]


def test_what_cannot_be_exported_is_said_in_one_line(
    served: tuple[Served, list[Event]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = served
    base = ["predictions", "export"]
    data = ["--data", str(made.data)]
    assert main([*base, "nobody", str(tmp_path / "a.csv"), *data]) == 1
    assert "no predictions of model 'nobody'" in capsys.readouterr().err
    assert main([*base, "m", str(tmp_path / "a.xlsx"), *data]) == 2
    assert "must end in .parquet or .csv" in capsys.readouterr().err
    assert main([*base, "m", str(tmp_path / "a.csv"), "--data", str(tmp_path), "--label", "late"]) == 1
    assert "the ledger cannot be read now: it is not there" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*base, "m", str(tmp_path / "a.csv"), "--since", "yesterday", *data])
    assert "is no date or time" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_a_ledger_predictions_are_exported_without_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = Gateway(tmp_path, version(1))
    gateway.send([[document(x=normal(2, 3), city=CITIES[:2].reshape(2, 1))]])
    # The segment is still being written.
    gateway.journal.tick(0.0)
    told = run(tmp_path, tmp_path / "a.parquet", capsys=capsys)
    assert (told["rows"], told["labelled"]) == (2, {})
    gateway.close()


def test_versions_that_disagree_about_a_tensor_are_exported_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, width in ((1, 2), (2, 3)):
        spec = (TensorSpec("x", "FP32", (-1, width)),)
        other = Contract(spec, (TensorSpec("y", "FP32", (-1, width)),), batched=True)
        gateway = Gateway(tmp_path, servable(FakeSession(), other, version=number))
        gateway.send([[document(x=normal(1, width))]])
        gateway.close()
    out = tmp_path / "a.parquet"
    assert main(["predictions", "export", "m", str(out), "--data", str(tmp_path)]) == 1
    assert "input_x of version 2 is <f4 [3], of version 1 <f4 [2]; export them apart" in capsys.readouterr().err
    assert run(tmp_path, out, "--version", "2", capsys=capsys)["rows"] == 1


def test_a_moment_is_a_date_or_a_time_to_the_microsecond() -> None:
    assert moment("1970-01-02") == 86_400 * 10**9
    assert moment("2026-09-17T10:00:00.000001Z") == 1_789_639_200_000_001_000
    assert moment("2026-09-17T12:00:00+02:00") == moment("2026-09-17T10:00:00")


def test_progress_is_one_line_on_a_terminal_and_nothing_elsewhere() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    now = [0.0]
    screen, file = Terminal(), io.StringIO()
    for stream in (screen, file):
        with Progress(200, "rows", stream, lambda: now[0]) as progress:
            now[0] = 2.0
            progress.advance(100)
            progress.advance(50)
    assert file.getvalue() == ""
    shown = screen.getvalue().split("\r")[1:]
    assert shown[0] == "[###############...............]  50%  100 of 200 rows  50/s\x1b[K"
    assert shown[-1].startswith("[######################........]  75%  150 of 200 rows")
    assert screen.getvalue().endswith("\n")
