"""The path of one inference: find the version, decode, run, encode; each phase timed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import NamedTuple

from gateway.errors import DeadlineExceeded, HeadgateError, InvalidRequest, ModelFailed, ServerError
from gateway.inference.ids import new_id
from gateway.models.servable import Servable
from gateway.models.table import ServingTable
from gateway.oip.datatypes import is_float, nonfinite_count
from gateway.oip.limits import Limits
from gateway.oip.request import decode
from gateway.oip.response import Reply, encode
from gateway.telemetry.metrics import Counters
from gateway.types import Array, InferRequest, InferResponse

log = logging.getLogger("headgate.inference")

INLINE_S = 0.002
"""Runs that are expected to take less stay in the event loop: a thread would cost more than it frees."""


class Answer(NamedTuple):
    """An encoded reply and what the HTTP layer puts into headers."""

    reply: Reply
    prediction_id: str
    model: str
    version: int


class Pipeline:
    """Answers infer requests. Used by every door; knows bytes and versions, but not HTTP."""

    def __init__(
        self,
        table: ServingTable,
        counters: Counters,
        limits: Limits,
        executor: Executor,
        default_deadline_s: float,
        max_deadline_s: float,
    ) -> None:
        self.limits = limits
        self._table = table
        self._counters = counters
        self._executor = executor
        self._default_deadline_s = default_deadline_s
        self._max_deadline_s = max_deadline_s

    async def infer(
        self,
        model: str,
        slot: str | None,
        read: Callable[[], Awaitable[bytes]],
        header: str | None,
        request_id: str,
        started_ns: int,
    ) -> Answer:
        """Answer one request.

        `slot` is a version, an alias or None; `read` gets the body, after the version was found; `header` is the
        value of Inference-Header-Content-Length; `started_ns` (monotonic) when the request began to arrive.
        Raises HeadgateError; every outcome is counted.
        """
        try:
            handle = self._table.acquire(model, slot)
        except HeadgateError as error:
            self._counters.unknown[error.code] += 1
            raise
        with handle as servable:
            try:
                return await self._infer(servable, await read(), header, request_id, started_ns)
            except HeadgateError as error:
                servable.counters.failed(error.code, time.monotonic_ns() - started_ns)
                raise
            except asyncio.CancelledError:
                servable.counters.failed("client-gone", time.monotonic_ns() - started_ns)
                raise
            except Exception as error:
                servable.counters.failed(ServerError.code, time.monotonic_ns() - started_ns)
                raise ServerError("internal error; the log has the details under this request id") from error

    async def _infer(
        self, servable: Servable, body: bytes, header: str | None, request_id: str, started_ns: int
    ) -> Answer:
        arrived = time.monotonic_ns()
        request = decode(body, header, servable.contract, self.limits, servable.model)
        if servable.config.nonfinite_inputs == "refuse":
            _refuse_nonfinite(request, servable)
        decoded = time.monotonic_ns()
        wait_s = min(request.timeout_s or self._default_deadline_s, self._max_deadline_s)
        response, began, ended = await self._run(servable, request, request_id, wait_s - (decoded - started_ns) / 1e9)
        prediction_id = new_id()
        request.id = request.id or prediction_id
        reply = encode(request, response, servable.contract, {"prediction_id": prediction_id}, servable.labels)
        done = time.monotonic_ns()
        counters = servable.counters
        counters.ran(request.rows, decoded - arrived, ended - began, done - ended, time.time_ns() // 1_000_000)
        counters.served(
            decoded - arrived, began - decoded, ended - began, done - ended, done - started_ns, request.rows
        )
        if reply.nonfinite:
            counters.nonfinite(reply.nonfinite)
        return Answer(reply, prediction_id, servable.model, servable.version)

    async def _run(
        self, servable: Servable, request: InferRequest, request_id: str, left_s: float
    ) -> tuple[InferResponse, int, int]:
        """Run, in the loop or in a thread; returns the response and when the run began and ended (ns)."""
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before the request could run")
        names = [output.name for output in request.outputs]

        def work() -> tuple[tuple[Array, ...], int, int]:
            began = time.monotonic_ns()
            arrays = servable.session.run(request.inputs, names)
            return arrays, began, time.monotonic_ns()

        try:
            if expected_s(servable, request.rows) < INLINE_S:
                arrays, began, ended = work()
            else:
                loop = asyncio.get_running_loop()
                arrays, began, ended = await asyncio.wait_for(loop.run_in_executor(self._executor, work), left_s)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while the model was running") from None
        except Exception as error:  # whatever the model raised: onnxruntime has no common base for it
            facts = {"model": servable.model, "version": servable.version, "request_id": request_id}
            log.error("model failed", extra={"event": "model-failed", **facts, "reason": str(error)})
            raise ModelFailed(
                f"model {servable.model!r} version {servable.version} failed on this input; "
                "the log has the details under this request id"
            ) from None
        return InferResponse(servable.model, servable.version, arrays), began, ended


def expected_s(servable: Servable, rows: int) -> float:
    """Expected seconds of a run over `rows` rows, from what quarantine measured; infinite where nothing is known."""
    single, batch = servable.report.run_s, servable.report.batch_run_s
    if single is None:
        return float("inf")
    return single if batch is None else max(single, batch) * max(1, rows / 4)


def _refuse_nonfinite(request: InferRequest, servable: Servable) -> None:
    for index, spec in enumerate(servable.contract.inputs):
        if is_float(spec.datatype) and nonfinite_count(request.inputs[spec.name], spec.datatype):
            raise InvalidRequest(
                f"inputs[{index}].data: model {servable.model!r} refuses NaN and infinities: input {spec.name!r}",
                field=f"inputs[{index}].data",
            )
