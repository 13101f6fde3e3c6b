"""A report that a replay goes on from, and what a replay says instead of a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.journal import archive, shelves
from gateway.ledger import dialect
from gateway.ledger.service import SystemClock, Writer
from tests import onnx_models
from tests.journal.rig import document, normal
from tests.replay.shop import TOML, WIDTH, Shop, regression, replay


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path, 300)


def test_a_refused_request_in_a_segment_that_is_not_archived_hinders_no_replay(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.gateway.send([[{"inputs": []}], [document(x=normal(2, WIDTH))]], version=1)
    assert [error.status for error in shop.gateway.door.errors] == [400]
    shop.gateway.journal.tick(0.0)
    for _ in range(2):
        code, report = replay(capsys=capsys, data=shop.data, models=shop.models)
        assert code == 0
        assert sum(each["rows"] for each in report["answers"]) == 302
        shop.close()


def test_a_report_of_one_file_of_a_version_is_not_gone_on_with_by_another(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1. Version 2 is held against a version 1 that has its file. 2. Version 1 becomes what it should be.
    Result: the report, which would say that both are the same, is refused; a new one finds the difference.
    """
    shop.close()
    right = (shop.models / "m" / "1" / "model.onnx").read_bytes()
    onnx_models.put(shop.models, "m", 1, regression(2), TOML)
    flags = ("--version", "2", "--against", "1", "--rtol", "1e-5", "--report")
    where: dict[str, Any] = {"capsys": capsys, "data": shop.data, "models": shop.models}
    code, _ = replay(*flags, str(tmp_path / "report.json"), **where)
    assert code == 0
    (shop.models / "m" / "1" / "model.onnx").write_bytes(right)
    again = ["replay", "m", "--data", str(shop.data), "--models", str(shop.models), *flags]
    assert main([*again, str(tmp_path / "report.json")]) == 1
    assert "another file of version 1 was run on" in capsys.readouterr().err
    code, report = replay(*flags, str(tmp_path / "other.json"), **where)
    assert (code, report["answers"][0]["beyond"] > 0) == (1, True)


def test_rows_of_a_version_that_was_missing_are_run_when_it_is_there(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.close()
    away = tmp_path / "away"
    (shop.models / "m" / "2").rename(away)
    where: dict[str, Any] = {"capsys": capsys, "data": shop.data, "models": shop.models}
    flags = ("--report", str(tmp_path / "report.json"))
    for _ in range(2):
        code, report = replay(*flags, **where)
        one, two = sorted(report["answers"], key=lambda each: each["version"])
        assert (code, one["rows"], two["rows"]) == (1, one["same"], 0)
        assert list(two["skipped"].values()) == [300 - one["rows"]], "each time they are counted once"
    away.rename(shop.models / "m" / "2")
    code, report = replay(*flags, **where)
    assert (code, report["reproduced"]) == (0, True)
    two = max(report["answers"], key=lambda each: each["version"])
    assert (two["rows"], two["skipped"], two["missing"]) == (300 - one["rows"], {}, "")


def test_files_of_the_archive_that_cannot_be_read_are_named_and_all_others_are_used(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The archive has a file that is cut, one that is empty, one of somebody else, and one that is good."""
    segments = shop.close()
    for seed in range(3):
        segments += [each for each in Shop(tmp_path / str(seed), 300).close() if each.spec.version == 1]
    good = [each for each in segments if each.spec.version == 1]
    for segment in segments:
        archive.write(segment, shop.data / shelves.FOLDER)
    for path in (shop.data / "journal").glob("*.segment"):
        path.unlink()
    places = {place.prefix: place.path for place in shelves.places(shop.data / shelves.FOLDER)}
    cut, empty = places[good[0].spec.prefix], places[good[1].spec.prefix]
    cut.write_bytes(cut.read_bytes()[:-100])
    empty.write_bytes(b"")
    (cut.parent / "x.parquet").write_bytes(b"somebody else's")
    code, report = replay(capsys=capsys, data=shop.data, models=shop.models)
    assert code == 1
    assert sorted(words.split()[0] for words in report["damaged"]) == sorted([cut.name, empty.name])
    rows = sum(each.rows() for each in segments) - good[0].rows() - good[1].rows()
    assert sum(each["rows"] for each in report["answers"]) == rows
    out = tmp_path / "out.parquet"
    assert main(["predictions", "export", "m", str(out), "--data", str(shop.data)]) == 1
    said = capsys.readouterr().out
    assert f"wrote {rows:,} rows" in said
    assert said.count("damaged: ") == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rtol", "nan"], "rtol must be a finite number, 0 or above, got nan"),
        (["--atol", "inf"], "atol must be a finite number, 0 or above, got inf"),
        (["--data", "/nowhere/at/all"], "there is no folder /nowhere/at/all"),
        (["--label", "zzz", "--version", "1"], "model 'm' has no feedback named 'zzz'; there is none"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(
    shop: Shop, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    shop.close()
    Writer(dialect.location(shop.data), shop.data, _Undeclared(), SystemClock()).close()  # type: ignore[arg-type]
    given = ["replay", "m", "--data", str(shop.data), "--models", str(shop.models), *flags]
    assert main(given) == 2
    assert words in capsys.readouterr().err


class _Undeclared:
    """No model declares any feedback."""

    @staticmethod
    def of(model: str) -> dict[str, Any]:
        return {}

    @staticmethod
    def declaring(name: str) -> dict[str, Any]:
        return {}
