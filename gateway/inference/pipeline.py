"""The path of every inference: admit, read, batch, run, write, reply. Both doors use it.

`admit` takes a permit before a body is read, `submit` decodes the body into the version's block, and the first call
of a turn of the event loop asks for a flush at its end: every request that the same turn brought runs together.
Short runs stay in the loop; long ones go to the version's own thread, and what arrives meanwhile is the next batch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from gateway.errors import DeadlineExceeded, HeadgateError, ModelFailed, ServerError
from gateway.inference.admission import Admission, Quotas
from gateway.inference.batcher import Batch
from gateway.inference.call import Call, Door
from gateway.inference.engine import Engine, Outcome, Part
from gateway.inference.times import Times
from gateway.journal.ids import new_id
from gateway.journal.journal import Journal
from gateway.journal.recorder import Run, segments_of
from gateway.models.servable import Servable
from gateway.models.table import ServingTable
from gateway.oip import compression
from gateway.oip.limits import Limits
from gateway.telemetry.store import CounterStore

log = logging.getLogger("headgate.inference")

SWEEP_S = 0.05
"""How often calls behind a long run are looked at for passed deadlines."""

QUIET_TURNS = 16
"""After so many turns that brought a single call each, a call runs at once and not at the end of its turn."""

GONE = 499
"""The status of the record of a request whose client did not wait for the answer."""

TURN_NS = 5_000_000
"""Runs of one turn take at most about this long; then the loop looks at its sockets again."""


class Pipeline:
    """The central type of a request. Not thread-safe: it belongs to the thread of the event loop."""

    def __init__(
        self,
        table: ServingTable,
        counters: CounterStore,
        limits: Limits,
        quotas: Quotas,
        default_deadline_s: float,
        max_deadline_s: float,
        journal: Journal | None = None,
    ) -> None:
        self.limits = limits
        self.journal = journal
        self.admission = Admission(quotas)
        self._table = table
        self._counters = counters
        self._default_ns = int(min(default_deadline_s, max_deadline_s) * 1e9)
        self._max_ns = int(max_deadline_s * 1e9)
        self._engines: dict[Servable, Engine] = {}
        self._due: list[Engine] = []
        self._flush_asked = False
        self._calls = 0
        self._quiet_turns = 0
        self._sweeping = False

    # -- in

    def admit(
        self,
        target: tuple[str, str | None],
        door: Door,
        arrived_ns: int,
        request_id: str = "",
        key: str = "",
        trace: str = "",
    ) -> Call:
        """Find the version of a `target` (model, version slot) and take a permit, before the body is read.

        Raises HeadgateError, counted.
        """
        try:
            servable = self._table.find(*target)
        except HeadgateError as error:
            self._counters.count("unknown", error.code)
            raise
        engine = self._engines.get(servable) or self._engine(servable)
        try:
            wait_s = engine.wait_s(arrived_ns) if engine.behind or engine.running is not None else 0.0
            self.admission.admit(servable.model, servable.in_flight, wait_s, key)
        except HeadgateError as error:
            now_ns = time.monotonic_ns()
            servable.counters.failed(error.code, now_ns - arrived_ns)
            if engine.recorder is not None and self.journal is not None:
                told = (error.status, error.code, error.message)
                engine.recorder.refused(*told, arrived_ns, now_ns, self.journal.wall_ns, request_id)
            raise
        call = Call(servable, door, arrived_ns, arrived_ns + self._default_ns)
        if request_id:
            call.request_id = request_id
            call.noted = True
        if key:
            call.key = key
            call.noted = True
        if trace:
            call.trace = trace
            call.noted = True
        return call

    def submit(self, call: Call, body: bytes, header: str | None, encoding: str | None = None) -> None:
        """Decode a body and let the call wait for its run. Every outcome reaches the call's door, now or later."""
        began_ns = time.monotonic_ns()
        engine = self._engines[call.servable]
        try:
            if encoding is not None:
                body = compression.inflate(body, encoding, self.limits.max_body_bytes)
            engine.reader.read(call, body, header)
            if call.timeout_s is not None:
                call.deadline_ns = call.arrived_ns + min(int(call.timeout_s * 1e9), self._max_ns)
            call.plan = engine.usual if call.outputs is engine.everything else engine.writer.plan(call.outputs)
            block = call.block
            if block is not None:
                call.prediction_id = block.prefix + b"%08x" % (block.base + call.row)
            elif engine.recorder is not None:
                engine.recorder.seat(call)
            else:
                call.prediction_id = new_id().encode()
            call.decoded_ns = time.monotonic_ns()
            call.decode_ns = call.decoded_ns - began_ns
            if call.decoded_ns > call.deadline_ns:
                raise DeadlineExceeded("the deadline passed before the request could run")
            if engine.behind or engine.running is not None:
                self._refuse_late(engine, call)
        except HeadgateError as error:
            self.refuse(call, error)
            return
        except Exception as error:
            self._defect(call, error)
            return
        self._calls += 1
        if engine.scheduled or engine.running is not None:
            engine.batcher.add(call)
        elif (
            self._calls == 1 and self._quiet_turns >= QUIET_TURNS and engine.cost.expect_s(call.rows) < engine.inline_s
        ):
            # Nobody else is about: the answer need not wait until the loop has looked at its sockets again.
            self._ask_for_flush()
            batch = Batch([call], call.block, call.row, call.row + call.rows)
            self._deliver(engine, batch, engine.execute(batch))
        else:
            engine.batcher.add(call)
            self._schedule(engine)

    def refuse(self, call: Call, error: HeadgateError) -> None:
        """Answer a call with an error."""
        now_ns = time.monotonic_ns()
        call.servable.counters.failed(error.code, now_ns - call.arrived_ns)
        self._record_end(call, error, now_ns)
        if not call.gone:
            _refuse(call, error)
        self._end(call)

    def abandon(self, call: Call) -> None:
        """The client left. Its row may still run with those of others; nobody is answered."""
        if call.gone:
            return
        call.gone = True
        call.outcome = GONE
        now_ns = time.monotonic_ns()
        call.servable.counters.failed("client-gone", now_ns - call.arrived_ns)
        if call.plan is None:
            self._record_end(call, None, now_ns)
            self._end(call)

    def close(self) -> None:
        """Give the threads of all engines back, and seal the journal."""
        for engine in self._engines.values():
            engine.close()
        if self.journal is not None:
            self.journal.close()

    def release(self, servables: Sequence[Servable]) -> None:
        """Forget the engines of versions that are gone."""
        for servable in servables:
            engine = self._engines.pop(servable, None)
            if engine is not None:
                engine.close()
            if self.journal is not None:
                self.journal.release(servable)

    def tick(self) -> None:
        """Set the gauges and look after the journal; called every so often."""
        self._release_gone()
        if self.journal is not None:
            self.journal.tick(time.monotonic())
        for servable, engine in self._engines.items():
            servable.counters.gauge(servable.in_flight, int(engine.cost.a * 1e9), int(engine.cost.b * 1e9))

    def engines(self) -> list[Engine]:
        """Every engine, for metrics."""
        return list(self._engines.values())

    # -- through

    def _engine(self, servable: Servable) -> Engine:
        self._release_gone()
        engine = self._engines[servable] = Engine(servable, self.limits, self.journal)
        return engine

    def _release_gone(self) -> None:
        """Let go of what belongs to versions that nobody can ask for any more."""
        self.release([each for each in self._engines if each.in_flight == 0 and not self._table.serves(each)])

    def _schedule(self, engine: Engine) -> None:
        """Run what waits for `engine` at the end of this turn."""
        engine.scheduled = True
        self._due.append(engine)
        self._ask_for_flush()

    def _ask_for_flush(self) -> None:
        if not self._flush_asked:
            self._flush_asked = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """The end of a turn: run what it brought."""
        self._quiet_turns = self._quiet_turns + 1 if self._calls == 1 else 0
        self._calls = 0
        self._flush_asked = False
        due, self._due = self._due, []
        for engine in due:
            engine.scheduled = False
            self._advance(engine)

    def _advance(self, engine: Engine) -> None:
        """Run what waits, until nothing does, the turn is over, or a long run has gone to the thread."""
        began_ns = time.monotonic_ns()
        while engine.running is None and engine.batcher:
            rows = engine.cost.best_rows(engine.max_rows) if engine.joins else 1
            batch, dropped = engine.batcher.take(rows, join_loose=engine.joins)
            for call in dropped:
                self._record_end(call, None, time.monotonic_ns())
                self._end(call)
            if batch is None:
                break
            expected_s = engine.cost.expect_s(batch.rows)
            if expected_s >= engine.inline_s:
                self._run_apart(engine, batch, expected_s)
                return
            self._deliver(engine, batch, engine.execute(batch))
            if engine.batcher and time.monotonic_ns() - began_ns > TURN_NS:
                engine.behind = True
                self._schedule(engine)
                self._sweep_soon()
                return
        engine.behind = False

    def _run_apart(self, engine: Engine, batch: Batch, expected_s: float) -> None:
        loop = asyncio.get_running_loop()
        engine.running = batch
        engine.running_until_ns = time.monotonic_ns() + int(expected_s * 1e9)
        future = engine.thread.submit(engine.execute, batch)
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._ran_apart, engine, batch, done.result()))
        self._sweep_soon()

    def _ran_apart(self, engine: Engine, batch: Batch, outcome: Outcome) -> None:
        engine.running = None
        self._deliver(engine, batch, outcome)
        self._advance(engine)

    def _sweep_soon(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Answer calls whose deadline passed behind others or inside a long run."""
        now_ns = time.monotonic_ns()
        busy = [engine for engine in self._engines.values() if engine.is_busy]
        for engine in busy:
            running = engine.running.calls if engine.running is not None else []
            for call in (*running, *engine.batcher.waiting()):
                if now_ns > call.deadline_ns and not call.gone:
                    where = "while the model was running" if call in running else "before the request could run"
                    error = DeadlineExceeded(f"the deadline passed {where}")
                    call.servable.counters.failed(error.code, now_ns - call.arrived_ns)
                    call.outcome = error.status
                    _refuse(call, error)
        self._sweeping = bool(busy)
        if busy:
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _refuse_late(self, engine: Engine, call: Call) -> None:
        finish_s = engine.wait_s(call.decoded_ns) + engine.cost.expect_s(call.rows)
        if call.decoded_ns + int(finish_s * 1e9) > call.deadline_ns:
            raise DeadlineExceeded("the answer is expected later than the deadline of the request")

    # -- out

    def _deliver(self, engine: Engine, batch: Batch, outcome: Outcome) -> None:
        run_ns = outcome.ended_ns - outcome.began_ns
        if len(outcome.parts) == 1 and outcome.parts[0].error is None:
            engine.cost.learn(batch.rows, run_ns / 1e9)
        for part in outcome.parts:
            if part.error is None:
                self._reply(engine, part, outcome, run_ns)
            else:
                self._failed(part.calls[0], part.error)

    def _reply(self, engine: Engine, part: Part, outcome: Outcome, run_ns: int) -> None:
        """Write the replies of calls that ran together, then their records, then answer them."""
        calls = [call for call in part.calls if not call.gone]
        try:
            replies, nonfinite = engine.writer.write(calls, part.names, part.arrays, part.first_row)
        except Exception as error:
            for call in part.calls:
                self._defect(call, error)
            return
        times = Times.of(part.calls, outcome.began_ns)
        written_ns = time.monotonic_ns()
        answer = (engine, part, outcome, run_ns, written_ns, times, calls, replies, nonfinite)
        if engine.recorder is not None and self.journal is not None:
            run = Run(outcome.rows, run_ns, written_ns, self.journal.wall_ns)
            engine.recorder.answered(part.calls, part.names, part.arrays, times, run)
            if self.journal.commits:
                self.journal.when_safe(segments_of(part.calls), lambda: self._answer(*answer))
                return
        self._answer(*answer)

    def _answer(
        self,
        engine: Engine,
        part: Part,
        outcome: Outcome,
        run_ns: int,
        written_ns: int,
        times: Times,
        calls: list[Call],
        replies: list[tuple[bytes, int]],
        nonfinite: int,
    ) -> None:
        counters = engine.servable.counters
        answered = []
        for call, (body, length) in zip(calls, replies, strict=True):
            if call.gone:
                continue
            call.gone = True
            answered.append(call)
            try:
                call.door.answer(call, body, length)
            except Exception as error:  # its mates wait for their answers, whatever became of its connection
                _unheard(call, error)
        if len(answered) < len(part.calls):
            times = Times.of(answered, outcome.began_ns)
        rows = sum([call.rows for call in answered])
        encode_ns = written_ns - outcome.ended_ns
        counters.ran(outcome.rows, int(sum(times.decode)), run_ns, encode_ns, time.time_ns() // 1_000_000)
        if answered:
            encode_ns //= len(answered)
            counters.served(times.decode, times.queue, run_ns, encode_ns, times.since(time.monotonic_ns()), rows)
        if nonfinite:
            counters.nonfinite(nonfinite)
        for call in part.calls:
            self._end(call)

    def _failed(self, call: Call, error: Exception) -> None:
        if isinstance(error, HeadgateError):
            self._finish_failed(call, error)
            return
        servable = call.servable
        facts = {"model": servable.model, "version": servable.version, "request_id": call.name()}
        log.error("model failed", extra={"event": "model-failed", **facts, "reason": str(error)})
        message = (
            f"model {servable.model!r} version {servable.version} failed on this input; "
            "the log has the details under this request id"
        )
        self._finish_failed(call, ModelFailed(message))

    def _defect(self, call: Call, error: Exception) -> None:
        facts = {"event": "internal-error", "request_id": call.name()}
        log.error("internal error", exc_info=error, extra=facts)
        self._finish_failed(call, ServerError("internal error; the log has the details under this request id"))

    def _finish_failed(self, call: Call, error: HeadgateError) -> None:
        if call.gone:
            self._record_end(call, error, time.monotonic_ns())
            self._end(call)
        else:
            self.refuse(call, error)

    def _record_end(self, call: Call, error: HeadgateError | None, now_ns: int) -> None:
        """The record of a call that gets no answer from its model; error None: its client left before it could run."""
        recorder = self._engines[call.servable].recorder
        if recorder is None or self.journal is None or call.done:
            return
        wall_ns = self.journal.wall_ns
        status, code = (GONE, "client-gone") if error is None else (error.status, error.code)
        if call.block is not None or call.segment is not None:
            recorder.ended(call, call.outcome or status, code, now_ns, wall_ns)
        else:
            message = "the client left" if error is None else error.message
            recorder.refused(status, code, message, call.arrived_ns, now_ns, wall_ns, call.request_id)

    def _end(self, call: Call) -> None:
        """Give back what a call holds, once."""
        if call.done:
            return
        call.done = True
        call.gone = True
        servable = call.servable
        servable.in_flight -= 1
        self.admission.leave(call.key)
        if call.block is not None:
            self._engines[servable].reader.release(call.block)
            call.block = None


def _refuse(call: Call, error: HeadgateError) -> None:
    """Tell the door, which is told nothing more."""
    call.gone = True
    try:
        call.door.refuse(call, error)
    except Exception as defect:
        _unheard(call, defect)


def _unheard(call: Call, error: Exception) -> None:
    """A door failed to pass on what it was told."""
    log.error("reply failed", exc_info=error, extra={"event": "internal-error", "request_id": call.name()})
