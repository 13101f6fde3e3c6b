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

from gateway.errors import DeadlineExceeded, HeadgateError
from gateway.inference.admission import Admission, Quotas
from gateway.inference.batcher import Batch
from gateway.inference.call import Call, Door
from gateway.inference.delivery import Delivery
from gateway.inference.engine import Engine, Outcome
from gateway.journal.ids import new_id
from gateway.journal.journal import Journal
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

NEAR_NS = 10_000_000_000
HOPELESS = 4e-9
"""Where nothing runs, a call with a near deadline is refused if its run is expected to take four times what is left (in
nanoseconds; the run in seconds): what was learned may be wrong, and is not corrected where nothing runs."""

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
        # Deadlines that are nearer than usual are looked at again when the answer is there.
        self._near_ns = min(NEAR_NS, self._default_ns // 2)
        self._engines: dict[Servable, Engine] = {}
        self._ways: dict[tuple[str, str | None], Engine] = {}
        self._published: object = None
        self._due: list[Engine] = []
        self._delivery = Delivery(self._engines, self.admission, journal)
        self._flush_asked = False
        self._calls = 0
        self._quiet_turns = 0
        self._lone: tuple[Engine, Outcome] | None = None
        self._sweeping = False
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- in

    def admit(
        self,
        target: tuple[str, str | None],
        door: Door,
        arrived_ns: int,
        request_id: str = "",
        key: str = "",
        trace: str = "",
        timeout_s: float | None = None,
    ) -> Call:
        """Find the version of a `target` (model, version slot) and take a permit, before the body is read.

        `timeout_s`: when the client stops waiting, as its headers say; the body may say otherwise.
        Raises HeadgateError, counted.
        """
        engine = self._ways.get(target)
        if engine is None or self._published is not self._table.models:
            engine = self._way(target)
        servable = engine.servable
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
        if timeout_s is not None:
            call.deadline_ns = arrived_ns + min(int(timeout_s * 1e9), self._max_ns)
        return call

    def submit(
        self, call: Call, body: bytes, header: str | None, encoding: str | None = None, began_ns: int = 0
    ) -> None:
        """Decode a body and let the call wait for its run. Every outcome reaches the call's door, now or later.

        `began_ns`: when the body was whole; 0 where it came with the head.
        """
        engine = self._engines[call.servable]
        try:
            if encoding is not None:
                body = compression.inflate(body, encoding, self.limits.max_body_bytes)
            engine.reader.read(call, body, header)
            if call.timeout_s is not None:
                call.deadline_ns = call.arrived_ns + min(int(call.timeout_s * 1e9), self._max_ns)
            call.plan = engine.plan(call.outputs)
            block = call.block
            if block is not None:
                call.prediction_id = block.prefix + b"%08x" % (block.base + call.row)
                call.plain = call.rows == 1 and not call.noted and not call.literal
            elif engine.recorder is not None:
                engine.recorder.seat(call)
            else:
                call.prediction_id = new_id().encode()
            call.decoded_ns = now_ns = time.monotonic_ns()
            call.decode_ns = now_ns - (began_ns or call.arrived_ns)
            if (left_ns := call.deadline_ns - now_ns) < self._near_ns:
                call.plain = False
                if left_ns < 0:
                    raise DeadlineExceeded("the deadline passed before the request could run")
                cost = engine.cost
                if cost.known and not engine.is_busy and cost.expect_s(call.rows) > left_ns * HOPELESS:
                    raise DeadlineExceeded("a run over so many rows is expected to take much longer than the deadline")
            if engine.behind or engine.running is not None:
                self._refuse_late(engine, call)
        except HeadgateError as error:
            self._delivery.refuse(call, error)
            return
        except Exception as error:
            self._delivery.defect(call, error)
            return
        self._calls += 1
        if engine.scheduled or engine.running is not None:
            engine.batcher.add(call)
        elif (
            self._calls == 1 and self._quiet_turns >= QUIET_TURNS and engine.cost.expect_s(call.rows) < engine.inline_s
        ):
            # Nobody else is about: the answer need not wait until the loop has looked at its sockets again. What there
            # is to count and to learn can wait: the loop writes first what is to be sent.
            self._ask_for_flush()
            batch = Batch([call], call.block, call.row, call.row + call.rows, call.plain)
            outcome = engine.execute(batch)
            self._delivery.deliver(engine, outcome)
            self._lone = engine, outcome
        else:
            engine.batcher.add(call)
            self._schedule(engine)

    def refuse(self, call: Call, error: HeadgateError) -> None:
        """Answer a call with an error."""
        self._delivery.refuse(call, error)

    def abandon(self, call: Call) -> None:
        """The client left. Its row may still run with those of others; nobody is answered."""
        self._delivery.abandon(call)

    def close(self) -> None:
        """Give the threads of all engines back, and seal the journal."""
        for engine in self._engines.values():
            engine.close()
        if self.journal is not None:
            self.journal.close()

    def release(self, servables: Sequence[Servable]) -> None:
        """Forget the engines of versions that are gone."""
        self._ways.clear()
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

    def _way(self, target: tuple[str, str | None]) -> Engine:
        """The engine that answers for a target, from now on until the table changes. Raises HeadgateError, counted."""
        if self._published is not self._table.models:
            self._ways.clear()
            self._published = self._table.models
        try:
            servable = self._table.find(*target)
        except HeadgateError as error:
            self._counters.count("unknown", error.code)
            raise
        engine = self._engines.get(servable)
        if engine is None:
            self._release_gone()
            engine = self._engines[servable] = Engine(servable, self.limits, self.journal)
        self._ways[target] = engine
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
            if self._loop is None or self._loop.is_closed():
                # Once: to ask for it costs a system call in Pythons before 3.12.
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """The end of a turn: run what it brought."""
        self._quiet_turns = self._quiet_turns + 1 if self._calls == 1 else 0
        self._calls = 0
        self._flush_asked = False
        if self._lone is not None:
            engine, outcome = self._lone
            self._lone = None
            engine.learn(outcome)
            self._delivery.settle()
        due, self._due = self._due, []
        for engine in due:
            engine.scheduled = False
            try:
                self._advance(engine)
            except Exception as error:  # the calls of other engines wait behind this one
                log.error("internal error", exc_info=error, extra={"event": "internal-error"})
        self._delivery.settle()

    def _advance(self, engine: Engine) -> None:
        """Run what waits, until nothing does, the turn is over, or a long run has gone to the thread."""
        began_ns = time.monotonic_ns()
        while engine.running is None and engine.batcher:
            batch, dropped = engine.batcher.take(engine.next_rows(began_ns), join_loose=engine.joins)
            for call in dropped:
                self._delivery.drop(call)
            if batch is None:
                break
            expected_s = engine.cost.expect_s(batch.rows)
            if expected_s >= engine.inline_s:
                if self._run_apart(engine, batch, expected_s):
                    return
                continue
            outcome = engine.execute(batch)
            self._delivery.deliver(engine, outcome)
            engine.learn(outcome)
            if engine.batcher and time.monotonic_ns() - began_ns > TURN_NS:
                engine.behind = True
                self._schedule(engine)
                self._sweep_soon()
                return
        engine.behind = False

    def _run_apart(self, engine: Engine, batch: Batch, expected_s: float) -> bool:
        """Begin a run in the engine's thread; False where there can be none, and the batch came to nothing."""
        loop = asyncio.get_running_loop()
        try:
            future = engine.thread.submit(engine.execute_apart, batch)
        except RuntimeError as error:  # the system gives no more threads
            self._delivery.broken(batch.calls, error)
            return False
        engine.running = batch
        engine.running_until_ns = time.monotonic_ns() + int(expected_s * 1e9)
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._ran_apart, engine, batch, done.result()))
        self._sweep_soon()
        return True

    def _ran_apart(self, engine: Engine, batch: Batch, outcome: Outcome) -> None:
        engine.running = None
        for part in outcome.parts:
            # Who left meanwhile is not answered.
            part.plain = part.plain and True not in [call.gone for call in part.calls]
        self._delivery.deliver(engine, outcome)
        engine.learn(outcome)
        self._advance(engine)
        self._delivery.settle()

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
                    self._delivery.refuse_early(call, error, now_ns)
        self._sweeping = bool(busy)
        if busy:
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _refuse_late(self, engine: Engine, call: Call) -> None:
        finish_s = engine.wait_s(call.decoded_ns) + engine.cost.expect_s(call.rows)
        if call.decoded_ns + int(finish_s * 1e9) > call.deadline_ns:
            raise DeadlineExceeded("the answer is expected later than the deadline of the request")
