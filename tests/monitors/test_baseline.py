"""The baseline: frozen from files of any size, the same however it was read, and safe on any column."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import cli
from monitors.baseline import freeze
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import FILE, HOURS, Baseline, hour_of_week
from monitors.baseline.layout import FIRST, MISSING, Category, Numeric
from monitors.baseline.scan import Scan, mixed
from monitors.baseline.source import Roles, TableFile
from monitors.types import Array, Columns

RNG = np.random.default_rng(5)


def table() -> pa.Table:
    rows = 3000
    start = np.datetime64("2026-01-05T00:00:00", "ns")
    return pa.table(
        {
            "id": np.arange(rows),
            "amount": RNG.lognormal(size=rows),
            "count": pa.array([None if i % 50 == 0 else int(i % 7) for i in range(rows)], type=pa.int64()),
            "flag": pa.array([None if i % 90 == 0 else i % 3 == 0 for i in range(rows)]),
            "word": pa.array([None if i % 40 == 0 else "abc"[i % 3] for i in range(rows)]),
            "coded": pa.array(["x" if i % 2 else "y" for i in range(rows)]).dictionary_encode(),
            "score": RNG.random(rows).astype(np.float32),
            "at": start + np.arange(rows) * np.timedelta64(600, "s"),
            "y": pa.array([None if i % 10 == 0 else i % 2 for i in range(rows)]),
            "list": pa.array([[1.0]] * rows),
        }
    )


ROLES = Roles(outputs=("score",), labels={"late": "y"}, time="at", exclude=("id",))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    pyarrow.parquet.write_table(table(), path, row_group_size=700)
    return path


def test_a_parquet_file_becomes_a_baseline(parquet: Path) -> None:
    baseline = build(TableFile(parquet, ROLES), slices=["word"])
    assert baseline.layout.names == ("amount", "count", "flag", "word", "coded", "score")
    kinds = [type(feature) for feature in baseline.layout.features]
    assert kinds == [Numeric, Numeric, Numeric, Category, Category, Numeric]
    assert baseline.facts.rows == baseline.state.rows == 3000
    assert baseline.facts.left_out["id"] == "excluded"
    assert "list" in baseline.facts.left_out["list"]
    assert baseline.facts.quantiles == "exact, over all 3000 rows"
    assert baseline.state.counts[:, MISSING].tolist() == [0, 60, 34, 75, 0, 0]
    assert baseline.hours is not None
    assert (baseline.hours.sum(axis=0) == baseline.state.counts).all()
    assert baseline.hours[0].sum() == 3 * 6 * 6  # Monday 0 h in each of three weeks, six rows, six features
    assert sorted(baseline.slices["word"]) == ["a", "b", "c"]
    assert sum(state.rows for state in baseline.slices["word"].values()) == 3000 - 75


def test_a_csv_file_gives_the_counts_that_the_parquet_file_gives(parquet: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    columns = table().drop_columns(["list"])
    stored = pyarrow.parquet.read_table(parquet).drop_columns(["list"])
    assert stored.schema.names == columns.schema.names
    pyarrow.csv.write_csv(stored.set_column(5, "coded", stored["coded"].cast(pa.string())), path)
    from_csv, from_parquet = build(TableFile(path, ROLES)), build(TableFile(parquet, ROLES))
    # float32 scores are written in decimals and read as doubles.
    assert from_csv.layout.features[:5] == from_parquet.layout.features[:5]
    assert from_csv.state.counts[:5].tolist() == from_parquet.state.counts[:5].tolist()


def test_a_baseline_does_not_depend_on_row_groups(parquet: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(parquet), path, row_group_size=100)
    assert build(TableFile(path, ROLES)).to_bytes() == build(TableFile(parquet, ROLES)).to_bytes()


def test_a_saved_baseline_is_read_back_byte_for_byte(parquet: Path, tmp_path: Path) -> None:
    baseline = build(TableFile(parquet, ROLES), slices=["word"])
    baseline.save(tmp_path / FILE)
    again = Baseline.load(tmp_path / FILE)
    assert again.to_bytes() == baseline.to_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert again.describe() == baseline.describe()
    assert sum(count for _, count in again.describe()["features"][3]["bins"]) == 3000 - 75


@pytest.mark.parametrize("data", [b"", b"{}", b"\x80", b"\xcc" * 64])
def test_what_is_no_baseline_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no baseline"):
        Baseline.from_bytes(data)


def test_a_baseline_cut_short_is_refused() -> None:
    data = build(Arrays({"x": RNG.normal(size=100)})).to_bytes()
    for length in range(0, len(data), 97):
        with pytest.raises(ValueError, match="no baseline"):
            Baseline.from_bytes(data[:length])


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (Roles(time="when"), "no column 'when'"),
        (Roles(features=("nothing",)), "no column 'nothing'"),
        (Roles(features=("list",)), "no column that could be a feature"),
        (Roles(time="word"), "column 'word' has \\d+ rows without a time"),
        (Roles(time="coded"), "holds no times"),
    ],
)
def test_wrong_roles_are_named(parquet: Path, roles: Roles, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(TableFile(parquet, roles))


def test_columns_of_an_input_tensor_get_the_names_that_live_rows_have(parquet: Path) -> None:
    baseline = build(TableFile(parquet, Roles(inputs={"x": ("count", "amount"), "w": ("word",)})))
    assert baseline.layout.names == ("x[0]", "x[1]", "w")
    plain = build(TableFile(parquet, Roles(features=("count", "amount", "word"))))
    assert baseline.state.counts.tolist() == plain.state.counts.tolist()
    with pytest.raises(ValueError, match="no column 'nothing'"):
        TableFile(parquet, Roles(inputs={"x": ("nothing",)}))


def test_files_that_are_no_tables_and_empty_tables_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(ValueError, match="cannot be read"):
        TableFile(broken)
    empty = tmp_path / "empty.parquet"
    pyarrow.parquet.write_table(pa.table({"x": pa.array([], pa.float64())}), empty)
    with pytest.raises(ValueError, match="no rows"):
        build(TableFile(empty))


def test_a_csv_whose_later_rows_have_another_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    names = ",".join(f"column{place}" for place in range(50))
    ordinary = ",".join(["1234567890"] * 50)
    path.write_text(f"{names}\n" + f"{ordinary}\n" * 8000 + "one" + ",2" * 49 + "\n")
    with pytest.raises(ValueError, match="cannot be read"):
        build(TableFile(path))


def test_times_are_read_from_numbers_and_text(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(
        pa.table(
            {"a": [0, 3600], "b": [0.5, 3600.25], "c": ["1970-01-01T00:00", "1970-01-01 01:00:00"], "x": [1.0, 2.0]}
        ),
        path,
    )
    for column, last in (("a", 3600 * 10**9), ("b", 3600_250_000_000), ("c", 3600 * 10**9)):
        baseline = build(TableFile(path, Roles(features=("x",), time=column)))
        assert baseline.facts.to_ns == last
        assert baseline.hours is not None
        assert np.flatnonzero(baseline.hours.sum(axis=(1, 2))).tolist() == [72, 73]


def test_the_hour_of_the_week_begins_on_monday_and_holds_before_1970() -> None:
    times = np.array(["2026-08-03T00:00", "2026-08-09T23:59", "1969-12-31T23:00", "1970-01-01T00:00"], "datetime64[ns]")
    hours = hour_of_week(Columns(times.astype(np.int64)))
    assert hours.tolist() == [0, 167, 71, 72]
    assert hours.max() < HOURS


# --- sampling ---


def normal_columns(rows: int, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).normal(size=rows)}


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 20_000), max_size=8))
def test_the_sample_does_not_depend_on_how_the_rows_were_cut(cuts: list[int]) -> None:
    columns = Columns(np.zeros(20_000, dtype=np.int64), normal_columns(20_000))
    whole, parts = Scan(sample_values=1000), Scan(sample_values=1000)
    whole.update(columns)
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 20_000], strict=True):
        parts.update(columns.take(slice(start, stop)))
    assert parts.freeze() == whole.freeze()
    assert len(whole.sample()["x"]) == 1000


def test_a_sample_keeps_its_promise_about_ranks_and_the_counts_stay_exact() -> None:
    values = np.sort(normal_columns(200_000)["x"])  # sorted, as data in time order may be
    baseline = build(Arrays({"x": values}), scan=Scan(sample_values=20_000))
    assert "sample of 20000 of 200000 rows" in baseline.facts.quantiles
    feature = baseline.layout.features[0]
    assert isinstance(feature, Numeric)
    assert (feature.minimum, feature.maximum) == (values[0], values[-1])
    counts = np.bincount(np.searchsorted(feature.edges, values, side="right"), minlength=feature.bins)
    assert baseline.state.counts[0, FIRST:].tolist() == counts.tolist()
    exact = Scan(sample_values=20_000)
    exact.update(Columns(np.zeros(len(values), dtype=np.int64), {"x": values}))
    edges = exact.freeze(cells=0).features[0].edges  # type: ignore[union-attr]
    ranks = np.searchsorted(values, edges, side="left") / len(values)
    error = math.sqrt(math.log(2 / 0.01) / (2 * 20_000))
    assert f"{error:.5f}" in baseline.facts.quantiles
    assert np.abs(ranks - np.array(freeze.QUANTILES)).max() <= error


def test_mixing_is_a_bijection_that_looks_random() -> None:
    numbers = mixed(np.arange(100_000, dtype=np.uint64))
    assert len(np.unique(numbers)) == 100_000
    assert abs((numbers / 2.0**64).mean() - 0.5) < 0.005


# --- freezing ---


def frozen(values: Array, whole: bool = False) -> Numeric:
    return freeze.numeric("x", "feature", values, float(values.min()), float(values.max()), whole)


def test_edges_reach_into_the_tails() -> None:
    feature = frozen(RNG.normal(size=100_000))
    share = np.diff([0, *(0.5 * (1 + math.erf(edge / math.sqrt(2))) for edge in feature.edges), 1])
    assert feature.grid is not None
    assert share[0] < 3e-4
    assert share[-1] < 3e-4
    assert share.max() < 0.15
    assert feature.bins == len(freeze.QUANTILES) + 1


def test_an_atom_has_a_bin_of_its_own() -> None:
    values = np.where(RNG.random(5000) < 0.3, 0.1, RNG.normal(size=5000))
    feature = frozen(values)
    place = feature.edges.index(0.1) + 1
    assert feature.points[place]
    assert feature.edges[place] == np.nextafter(0.1, 1)
    assert feature.labels()[place] == "0.1"


def test_every_value_of_a_number_with_few_whole_values_has_a_bin() -> None:
    feature = frozen(RNG.integers(0, 10, 5000).astype(float), whole=True)
    assert [label for label, point in zip(feature.labels(), feature.points, strict=True) if point] == list("0123456789")
    assert feature.grid is not None
    assert feature.grid.integral


def test_heavy_tails_get_exact_quantiles_and_no_grid() -> None:
    feature = frozen(RNG.lognormal(sigma=3, size=50_000))
    assert feature.grid is None
    assert feature.bins == len(freeze.QUANTILES) + 1


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_any_values_freeze_to_rising_edges(values: list[float]) -> None:
    array = np.array(values) + 0.0
    feature = frozen(array, whole=bool((array == np.floor(array)).all()))
    assert list(feature.edges) == sorted(set(feature.edges))
    assert len(feature.points) == feature.bins
    assert all(map(math.isfinite, feature.edges))
    if feature.grid is not None:
        assert 0 < feature.grid.cells <= freeze.CELLS * freeze.WIDE


# --- the command ---


def command(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(words)


def test_the_command_writes_the_baseline_and_says_what_it_did(
    parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = ["--input", "x=amount,count", "--input", "word=word", "--categorical", "count"]
    roles = ["--outputs", "score", "--label", "late=y", "--time", "at", "--exclude", "id", "--slice", "word"]
    assert cli.run(command(str(tmp_path), str(parquet), *inputs, *roles)) == 0
    out = capsys.readouterr().out
    assert "baseline of 3,000 rows from train.parquet" in out
    assert "left out: id" in out
    assert "counts by word: " in out
    built = Baseline.load(tmp_path / FILE)
    assert built.facts.rows == 3000
    assert [type(feature) for feature in built.layout.features] == [Numeric, Category, Category, Numeric]


def test_the_command_refuses_wrong_columns_and_folders(
    parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(command(str(tmp_path), str(parquet), "--time", "never")) == 2
    assert "no column 'never'" in capsys.readouterr().err
    assert cli.run(command(str(tmp_path / "no"), str(parquet))) == 2
    assert not list(tmp_path.iterdir())
    for words in (("--label", "=y"), ("--input", "x"), ("--input", "=a")):
        with pytest.raises(SystemExit):
            command(str(tmp_path), str(parquet), *words)


def test_the_progress_bar_counts_both_passes(parquet: Path) -> None:
    seen: list[Any] = []
    build(TableFile(parquet, ROLES), progress=lambda phase, rows: seen.append((phase, rows)))
    assert seen[-1] == ("counting", 3000)
    assert ("reading", 3000) in seen
