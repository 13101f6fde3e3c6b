"""What stands around the inference core in its tests: a session that is a function, a door that notes, a version."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from gateway.errors import HeadgateError
from gateway.inference.call import Call
from gateway.models.config import Batching, ModelConfig, OutputRule
from gateway.models.manifest import Lineage
from gateway.models.quarantine import Report
from gateway.models.servable import Servable
from gateway.models.session import Session
from gateway.models.table import ModelTable, ServingTable, VersionStatus
from gateway.telemetry.counters import VersionCounters
from gateway.types import Array, Contract, TensorSpec

Run = Callable[[Mapping[str, Array], Sequence[str]], tuple[Array, ...]]

ECHO = Contract((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),), batched=True)
"""One input that is passed on: every answer can be told from every other one."""


def echo(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
    """Every output is the first input."""
    first = next(iter(inputs.values()))
    return tuple(first.copy() for _ in outputs)


class FakeSession:
    """Runs a function. `runs` are the inputs of every run so far, copied, `threads` the names of their threads."""

    def __init__(self, run: Run = echo, *, computes_alone: bool = False) -> None:
        self._run = run
        self.computes_alone = computes_alone
        self.runs: list[dict[str, Array]] = []
        self.threads: list[str] = []

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        """See Session."""
        self.runs.append({name: array.copy() for name, array in inputs.items()})
        self.threads.append(threading.current_thread().name)
        return self._run(inputs, outputs)

    @property
    def rows(self) -> list[int]:
        """Rows of every run."""
        return [len(next(iter(inputs.values()))) for inputs in self.runs]


class Gate:
    """A run that takes as long as the test wants: it has begun, and it ends when it may."""

    def __init__(self, run: Run = echo) -> None:
        self._run = run
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        self.begun.release()
        assert self.may_end.acquire(timeout=30), "the test never let the run end"
        return self._run(inputs, outputs)


class FakeDoor:
    """Notes what becomes of its call."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.lengths: list[int] = []
        self.errors: list[HeadgateError] = []

    def answer(self, call: Call, body: bytes, json_length: int) -> None:
        """See Door."""
        self.bodies.append(body)
        self.lengths.append(json_length)

    def refuse(self, call: Call, error: HeadgateError) -> None:
        """See Door."""
        self.errors.append(error)

    @property
    def times(self) -> int:
        """How often it was called; exactly once is right."""
        return len(self.bodies) + len(self.errors)


def servable(
    session: FakeSession | None = None,
    contract: Contract = ECHO,
    *,
    model: str = "m",
    version: int = 1,
    max_rows: int = 64,
    labels: Mapping[str, Sequence[str]] | None = None,
    nonfinite: Any = "accept",
    run_s: float | None = 0.0001,
    batch_s: float | None = 0.0002,
    batch_rows: int = 8,
) -> Servable:
    """A loaded version around a fake session. `run_s` and `batch_s` are what quarantine says it measured."""
    config = ModelConfig(
        batching=Batching(max_rows=max_rows),
        outputs={name: OutputRule(tuple(words)) for name, words in (labels or {}).items()},
        nonfinite_inputs=nonfinite,
    )
    report = Report(
        contract=contract,
        sha256="",
        size=1,
        verified=False,
        producer="",
        opsets={},
        memory_bytes=0,
        load_s=0.0,
        run_s=run_s,
        batch_run_s=batch_s,
        golden_samples=0,
        unranked=(),
        notes=(),
        batch_rows=batch_rows,
    )
    return Servable(
        model, version, cast(Session, session or FakeSession()), config, report, Lineage(), VersionCounters()
    )


def table_of(*versions: Servable) -> ServingTable:
    """A table in which these versions answer."""
    table = ServingTable()
    models: dict[str, dict[int, Servable]] = {}
    for each in versions:
        models.setdefault(each.model, {})[each.version] = each
    table.publish(
        {
            name: ModelTable(name, ready, {}, tuple(VersionStatus(version, "READY") for version in ready))
            for name, ready in models.items()
        }
    )
    return table


def call_of(servable: Servable, **set_to: Any) -> Call:
    """A call with attributes set."""
    call = Call(servable, FakeDoor(), 0, 1 << 62)
    for name, value in set_to.items():
        setattr(call, name, value)
    return call


def rows_of(call: Call) -> list[Array]:
    """A copy of the rows that a call was decoded into, input by input in the order of the contract."""
    if call.block is not None:
        return [array[call.row : call.row + call.rows].copy() for array in call.block.arrays]
    assert call.arrays is not None
    return [np.array(array) for array in call.arrays.values()]
