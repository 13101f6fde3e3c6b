"""Training data from files: Parquet or CSV, read batch by batch with pyarrow, as often as needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monitors.baseline.build import BATCH
from monitors.types import Array, Columns

_CSV_BLOCK = 1 << 22  # bytes of a CSV file at a time; the types are inferred from the first block


@dataclass(frozen=True, slots=True)
class Roles:
    """Which columns are what. Every column that is named nowhere is a feature, unless `features` names those.

    `inputs`: for a model that takes its features as the rows of one tensor: the tensor's name, and the columns in the
    order of its values; they become the features `name[0]`, `name[1]` and so on, as live rows do. `outputs`: the
    model's own answers on the data. `labels`: feedback name to column. `time`: a timestamp, text in ISO 8601, or a
    number of seconds since 1970. `exclude`: columns to leave out, such as row numbers.
    """

    features: tuple[str, ...] = ()
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    time: str | None = None
    exclude: tuple[str, ...] = ()

    def live(self) -> dict[str, str]:
        """The name that live rows have for each column of `inputs`."""
        return {
            column: f"{name}[{place}]" if len(columns) > 1 else name
            for name, columns in self.inputs.items()
            for place, column in enumerate(columns)
        }

    def named(self) -> list[str]:
        """The columns that must be there."""
        return [*self.features, *self.live(), *self.outputs, *self.labels.values(), *([self.time] if self.time else [])]


class TableFile:
    """A Parquet or CSV file as a source. Raises ValueError where it cannot be read or lacks a named column.

    Null becomes NaN in numbers and None in text. Columns of types that are neither numbers, booleans, times nor text
    are left out, and named in `left_out`. A row without a time is an error: it belongs to no hour.
    """

    def __init__(self, path: Path, roles: Roles | None = None) -> None:
        self.path = path
        self.roles = roles or Roles()
        self.timed = self.roles.time is not None
        self._left_out: dict[str, str] = dict.fromkeys(self.roles.exclude, "excluded")
        self._live = self.roles.live()
        self._features = self._choose()

    def describe(self) -> str:
        return self.path.name

    def left_out(self) -> Mapping[str, str]:
        return dict(self._left_out)

    @property
    def rows(self) -> int | None:
        """How many rows there are where the file tells, for a progress bar."""
        if _is_csv(self.path):
            return None
        with self._parquet() as file:
            return int(file.metadata.num_rows)

    def __iter__(self) -> Iterator[Columns]:
        wanted = [*self._features, *self.roles.outputs, *self.roles.labels.values()]
        wanted += [self.roles.time] if self.roles.time else []
        try:
            for batch in self._batches(list(dict.fromkeys(wanted))):
                if batch.num_rows:
                    yield self._columns(batch)
        except _arrow().ArrowInvalid as error:
            raise ValueError(f"{self.path.name} cannot be read: {_sentence(error)}") from error

    def _columns(self, batch: Any) -> Columns:
        arrays = {name: to_numpy(batch.column(name)) for name in batch.schema.names if name != self.roles.time}
        rows = batch.num_rows
        time_ns = times(batch.column(self.roles.time), self.roles.time) if self.roles.time else np.zeros(rows, np.int64)
        labels = {name: arrays[column] for name, column in self.roles.labels.items()}
        return Columns(
            time_ns,
            {self._live.get(name, name): arrays[name] for name in self._features},
            {name: arrays[name] for name in self.roles.outputs},
            labels,
            {name: present(values) for name, values in labels.items()},
        )

    def _choose(self) -> list[str]:
        schema = self._schema()
        if missing := [name for name in self.roles.named() if name not in schema.names]:
            raise ValueError(f"{self.path.name} has no column {missing[0]!r}")
        other = {*self.roles.outputs, *self.roles.labels.values(), *self.roles.exclude, self.roles.time}
        chosen = []
        chosen_by_name = (*self.roles.features, *self._live)
        for name in chosen_by_name or [each for each in schema.names if each not in other]:
            kind = schema.field(name).type
            if is_readable(kind):
                chosen.append(name)
            else:
                self._left_out[name] = f"the type {kind} is neither a number nor text"
        if not chosen:
            raise ValueError(f"{self.path.name} has no column that could be a feature")
        return chosen

    def _schema(self) -> Any:
        try:
            if _is_csv(self.path):
                return self._csv([]).schema
            with self._parquet() as file:
                return file.schema_arrow
        except _arrow().ArrowInvalid as error:
            raise ValueError(f"{self.path.name} cannot be read: {_sentence(error)}") from error

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        if _is_csv(self.path):
            with self._csv(columns) as reader:
                yield from reader
        else:
            with self._parquet() as file:
                yield from file.iter_batches(batch_size=BATCH, columns=columns)

    def _parquet(self) -> Any:
        _arrow()
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(self.path)

    def _csv(self, columns: list[str]) -> Any:
        _arrow()
        import pyarrow.csv

        read = pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK, use_threads=False)
        convert = pyarrow.csv.ConvertOptions(include_columns=columns, strings_can_be_null=True)
        return pyarrow.csv.open_csv(self.path, read_options=read, convert_options=convert)


def is_readable(kind: Any) -> bool:
    """Whether `to_numpy` reads an Arrow type."""
    types = _arrow().types
    if types.is_dictionary(kind):
        return is_readable(kind.value_type)
    checks = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_temporal)
    return any(check(kind) for check in (*checks, types.is_string, types.is_large_string, types.is_null))


def to_numpy(column: Any) -> Array:
    """A column of Arrow as numpy: floats with NaN for null, integers and booleans as they are, text as str and None."""
    arrow = _arrow()
    kind = column.type
    if arrow.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if arrow.types.is_null(kind):
        return np.full(len(column), np.nan)
    if arrow.types.is_string(kind) or arrow.types.is_large_string(kind):
        text = np.empty(len(column), dtype=object)
        text[:] = column.to_pylist()
        return text
    if arrow.types.is_timestamp(kind):
        column = column.cast(arrow.timestamp("ns"))
        values: Array = column.to_numpy(zero_copy_only=False).astype("datetime64[ns]")
        return values
    if arrow.types.is_temporal(kind):
        column = column.cast(arrow.int32() if kind.bit_width == 32 else arrow.int64())
    if arrow.types.is_decimal(kind):
        column = column.cast(arrow.float64())
    if arrow.types.is_boolean(kind) and column.null_count:
        column = column.cast(arrow.uint8())
    numbers: Array = column.to_numpy(zero_copy_only=False)
    return numbers


def times(column: Any, name: str | None) -> Array:
    """Unix nanoseconds, int64 (n,), from timestamps, ISO 8601 text or seconds.

    Raises ValueError where one is missing or is no time.
    """
    arrow = _arrow()
    if column.null_count:
        raise ValueError(f"column {name!r} has {column.null_count} rows without a time")
    kind = column.type
    if arrow.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if arrow.types.is_integer(kind) or arrow.types.is_floating(kind):
        seconds: Array = column.to_numpy(zero_copy_only=False)
        return (seconds.astype(np.float64) * 1e9).astype(np.int64) if seconds.dtype.kind == "f" else seconds * 10**9
    try:
        stamps: Array = column.cast(arrow.timestamp("ns")).to_numpy(zero_copy_only=False).astype(np.int64)
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError) as error:
        raise ValueError(f"column {name!r} of type {kind} holds no times: {_sentence(error)}") from error
    return stamps


def present(values: Array) -> Array:
    """bool (n,): the values that are there."""
    if values.dtype.kind == "f":
        return ~np.isnan(values)
    if values.dtype == object:
        return np.array([value is not None for value in values.tolist()], dtype=bool)
    return np.ones(len(values), dtype=bool)


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".txt")


def _sentence(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")


def _arrow() -> Any:
    import pyarrow  # takes a second, and nothing but building a baseline needs it here

    return pyarrow
