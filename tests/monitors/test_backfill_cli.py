"""`headgate monitor backfill` and `headgate baseline build`: what they print, write, and refuse."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gateway import cli
from gateway.control.monitoring import subject
from gateway.journal import archive, shelves
from gateway.journal.cli import SystemClock
from gateway.journal.keeper import Keeper
from gateway.models.manifest import MANIFEST, MODEL, entry_for, read_manifest
from gateway.models.package import add_file, add_version
from gateway.settings import Settings
from monitors.baseline.document import FILE, Baseline
from monitors.service import Service
from tests.monitors.test_backfill import Shop, of_both
from tests.monitors.test_service import Ahead
from tests.onnx_models import constant_answer

pytestmark = pytest.mark.usefixtures("_one_nursery")

KEY = ("m", 1)
TOML = """
[monitor]
block_s = 1
window_s = 3600
learn_rows = 100
"""


class Place:
    """A folder of models with version 1 of `m`, and a data folder with predictions, some of them archived."""

    def __init__(self, root: Path) -> None:
        self.models, self.data = root / "models", root / "data"
        self.folder = self.models / "m" / "1"
        self.folder.mkdir(parents=True)
        (self.models / "m" / "model.toml").write_text(TOML)
        self.rows = 0

    def serve(self, requests: int, shift: float = 0.0) -> None:
        shop = Shop(self.data)
        shop.mix(requests, shift)
        shop.pipeline.close()

    def archive(self) -> None:
        keeper = Keeper(Settings(data=self.data))
        assert keeper.step().done["archive"] >= 1
        assert keeper.step().done["release"] >= 1

    def backfill(self, *options: object) -> int:
        words = ["monitor", "backfill", *options, "--models", self.models, "--data", self.data]
        return cli.main([str(word) for word in words])

    def service(self) -> Service:
        """The service of a server that begins in these folders."""
        return Service(self.data, lambda *key: subject(self.models, *key), lambda alarm: None, Ahead())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    add_file(made.folder, FILE, of_both().to_bytes())
    return made


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a minute later than it is, so that every block is complete."""
    monkeypatch.setattr(SystemClock, "now_ns", staticmethod(lambda: time.time_ns() + 60_000_000_000))


@pytest.mark.usefixtures("later")
def test_drift_quality_and_alarms_of_all_that_is_kept_are_printed(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.serve(60)
    place.archive()
    assert place.backfill() == 0
    assert "  no alarm" in capsys.readouterr().out.splitlines()
    place.serve(60, shift=3.0)
    assert place.backfill() == 0
    said = capsys.readouterr()
    assert said.err == ""
    first, second, *_ = said.out.splitlines()
    assert first.startswith("m version 1: ")
    assert second == "  baseline of 2,000 rows, from arrays"
    assert "the rows differ from those the model was trained on" in said.out
    shown = [line.split()[0] for line in said.out.split("RANGE\n")[1].splitlines() if line]
    assert sorted(shown[:4]) == ["x[0]", "x[1]", "y[0]", "y[1]"]


@pytest.mark.usefixtures("later")
def test_as_json_it_has_every_statistic_and_the_alarms_and_changes_nothing(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.serve(60)
    place.archive()
    place.serve(60, shift=3.0)
    assert place.backfill("m", "--version", 1, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["model"], found["version"], found["learning"], found["written"]) == ("m", 1, False, False)
    assert found["rows"] == found["features"]["x[0]"]["psi"]["n"]
    assert found["features"]["x[0]"]["psi"]["debiased"] > 0.5
    assert found["features"]["city"]["unseen"]["rate"] == 0
    assert found["features"]["city"]["kolmogorov_smirnov"]["value"] is None
    assert [alarm["kind"] for alarm in found["alarms"]][:1] == ["different-from-training"]
    assert not (place.data / "monitors").exists()


def test_another_baseline_can_be_compared_with(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.serve(40, shift=3.0)
    other = of_both(500)
    other.save(place.data / "other.msgpack")
    assert place.backfill("--baseline", place.data / "other.msgpack", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["baseline"]["rows"] == 500
    (place.data / "other.msgpack").write_bytes(b"nonsense")
    assert place.backfill("--baseline", place.data / "other.msgpack") == 2
    assert "cannot be used" in capsys.readouterr().err


def test_what_is_written_is_what_a_server_goes_on_from_and_each_row_counts_once(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.serve(30)
    place.archive()
    place.serve(30)
    assert place.backfill("--write") == 0
    counted = int(capsys.readouterr().out.split(": ")[1].split()[0].replace(",", ""))
    place.serve(20)
    watching = place.service()
    watching.step()
    rows = watching.watchers[KEY].progress.rows
    assert place.backfill("--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert rows == found["rows"] > counted
    # The archive alone would have been unknown to a server that begins.
    (place.data / "monitors" / "m.1.state").unlink()
    fresh = place.service()
    fresh.step()
    assert fresh.watchers[KEY].progress.rows < rows


def test_a_server_that_runs_is_not_written_under(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.serve(5)
    descriptor = os.open(place.data / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert place.backfill("--write") == 2
    assert "in use by another server" in capsys.readouterr().err
    assert place.backfill() == 0
    os.close(descriptor)
    assert place.backfill("--write") == 0


def test_the_server_cannot_go_on_with_a_baseline_that_is_not_its_own(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.backfill("--write", "--baseline", place.folder / FILE) == 2
    assert "--baseline" in capsys.readouterr().err


def test_where_there_are_no_predictions_it_says_so(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.backfill("other") == 1
    assert capsys.readouterr().err == "headgate: there are no predictions of 'other'\n"


def test_without_a_baseline_one_is_learned_from_the_first_rows(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.folder / FILE).unlink()
    place.serve(20)
    assert place.backfill() == 0
    assert "too few to learn a baseline from, which takes 100" in capsys.readouterr().out
    place.serve(200)
    place.archive()
    assert place.backfill("--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["baseline"]["learned"], found["baseline"]["rows"]) == (True, 100)


def test_rows_without_inputs_and_damaged_files_are_named_and_not_counted(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        place.serve(20)
    place.archive()
    bare, broken, whole = shelves.places(place.data / shelves.FOLDER)
    archive.strip(bare.path)
    broken.path.write_bytes(b"no table")
    assert place.backfill("--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["without_inputs"] == pq.read_metadata(bare.path).num_rows
    assert list(found["damaged"]) == [broken.prefix]
    assert 0 < found["rows"] <= pq.read_metadata(whole.path).num_rows
    assert found["features"]["x[0]"]["missing"]["rate"] == 0


# -- baselines and manifests


@pytest.fixture
def packaged(tmp_path: Path) -> Path:
    """A version with a manifest."""
    (tmp_path / "one.onnx").write_bytes(constant_answer(1))
    return add_version(tmp_path / "models", "one", tmp_path / "one.onnx")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"x": np.random.default_rng(1).normal(size=500).astype(np.float32)}), path)
    return path


def test_a_baseline_that_is_built_is_in_the_manifest_and_is_used(packaged: Path, table: Path) -> None:
    before = read_manifest(packaged, "one", 1)
    assert cli.main(["baseline", "build", str(packaged), str(table)]) == 0
    manifest = read_manifest(packaged, "one", 1)
    assert manifest.files == before.files | {FILE: entry_for((packaged / FILE).read_bytes())}
    assert manifest.lineage == before.lineage
    assert [path.name for path in packaged.parent.iterdir()] == ["1"]
    found = subject(packaged.parent.parent, "one", 1).baseline
    assert found is not None
    assert found.facts.rows == 500
    assert cli.main(["model", "check", str(packaged)]) == 0


@pytest.mark.parametrize("harm", ["changed", "not listed", "manifest"])
def test_a_baseline_that_its_manifest_does_not_vouch_for_is_not_used(
    packaged: Path, table: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert cli.main(["baseline", "build", str(packaged), str(table)]) == 0
    manifest = packaged / MANIFEST
    if harm == "changed":
        other = Baseline.load(packaged / FILE)
        other.parts["more"] = b"1"
        other.save(packaged / FILE)
    elif harm == "manifest":
        manifest.write_text("{}")
    else:
        document = json.loads(manifest.read_bytes())
        del document["files"][FILE]
        manifest.write_text(json.dumps(document))
    with caplog.at_level(logging.ERROR, "headgate.monitoring"):
        assert subject(packaged.parent.parent, "one", 1).baseline is None
    (record,) = caplog.records
    assert record.__dict__["event"] == "baseline-failed"


def test_a_version_without_manifest_gets_the_file_alone(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / MODEL).write_bytes(b"model")
    add_file(folder, FILE, b"baseline")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {MODEL: b"model", FILE: b"baseline"}


def test_where_the_manifest_is_wrong_nothing_is_changed(
    packaged: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (packaged / MANIFEST).write_text("{}")
    assert cli.main(["baseline", "build", str(packaged), str(table)]) == 1
    assert MANIFEST in capsys.readouterr().err
    assert sorted(path.name for path in packaged.iterdir()) == [MANIFEST, MODEL]
    assert [path.name for path in packaged.parent.iterdir()] == ["1"]
