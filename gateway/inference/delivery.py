"""The way out of the pipeline: what calls came to is written, recorded, told to their doors, and then counted.

A record is complete before its reply is sent. What is only counted waits until everybody is told: a lone client need
not wait for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import msgspec

from gateway.errors import DeadlineExceeded, HeadgateError, ModelFailed, NotReady, ServerError
from gateway.inference.admission import Admission
from gateway.inference.call import Call
from gateway.inference.engine import Engine, Outcome, Part
from gateway.inference.times import Times
from gateway.journal.journal import Journal
from gateway.journal.recorder import Run, segments_of
from gateway.models.servable import Servable

log = logging.getLogger("headgate.inference")

GONE, ANSWERED = 499, 200
"""Statuses of records: of a request whose client did not wait for the answer, and of one that got it."""


class Account(msgspec.Struct, gc=False):
    """What is left to be counted of calls that were answered together. Times are nanoseconds."""

    engine: Engine
    part: Part
    rows: int
    run_ns: int
    encode_ns: int
    began_ns: int
    times: Times
    nonfinite: int
    answered_ns: int = 0


class Delivery:
    """Ends every call that was admitted, once: with a reply, an error, or nobody to hear of it.

    `engines` are those of the pipeline. Belongs to the thread of the event loop.
    """

    def __init__(self, engines: Mapping[Servable, Engine], admission: Admission, journal: Journal | None) -> None:
        self._engines = engines
        self._admission = admission
        self._journal = journal
        self._accounts: list[Account] = []

    def deliver(self, engine: Engine, outcome: Outcome) -> None:
        """Give every call of a batch what it came to. It never raises: other batches wait behind this one."""
        for part in outcome.parts:
            try:
                if part.error is None:
                    self._reply(engine, part, outcome)
                else:
                    self._failed(part.calls[0], part.error)
            except Exception as error:
                self.broken(part.calls, error)

    def settle(self) -> None:
        """Count what was answered, and end its calls."""
        accounts = self._accounts
        if not accounts:
            return
        self._accounts = []
        for account in accounts:
            try:
                self._count(account)
            except Exception as error:
                self.broken(account.part.calls, error)

    def refuse(self, call: Call, error: HeadgateError) -> None:
        """Answer a call with an error."""
        now_ns = time.monotonic_ns()
        call.servable.counters.failed(error.code, now_ns - call.arrived_ns)
        self._record_end(call, error, now_ns)
        if not call.gone:
            _refuse(call, error)
        self._end(call)

    def refuse_early(self, call: Call, error: HeadgateError, now_ns: int) -> None:
        """Answer a call with an error while its row waits or runs; it ends with that."""
        call.servable.counters.failed(error.code, now_ns - call.arrived_ns)
        call.outcome = error.status
        _refuse(call, error)

    def abandon(self, call: Call) -> None:
        """The client left: nobody is answered. A row that is decoded already may still run with those of others."""
        if call.gone:
            return
        call.gone = True
        call.outcome = GONE
        now_ns = time.monotonic_ns()
        call.servable.counters.failed("client-gone", now_ns - call.arrived_ns)
        if call.plan is None:
            self.drop(call)

    def drop(self, call: Call) -> None:
        """A call ends that nobody waits for and that did not run."""
        self._record_end(call, None, time.monotonic_ns())
        self._end(call)

    def defect(self, call: Call, error: Exception) -> None:
        """Something of ours failed."""
        facts = {"event": "internal-error", "request_id": call.name()}
        log.error("internal error", exc_info=error, extra=facts)
        self._finish_failed(call, ServerError("internal error; the log has the details under this request id"))

    def broken(self, calls: list[Call], error: Exception) -> None:
        """A defect met these calls on their way out: whoever is not answered gets an error, and all permits go back."""
        for call in calls:
            if call.done:
                continue
            try:
                if call.outcome != ANSWERED:
                    self.defect(call, error)
            except Exception as another:
                _unheard(call, another)
            self._end(call)

    # -- calls that ran

    def _reply(self, engine: Engine, part: Part, outcome: Outcome) -> None:
        """Write the replies of calls that ran together, then their records, then answer them."""
        everyone = part.calls
        if not part.plain and min([call.deadline_ns for call in everyone]) < outcome.ended_ns:
            self._refuse_overdue(part, outcome.ended_ns)
        plain = part.plain
        calls = everyone if plain else [call for call in everyone if not call.gone]
        replies, nonfinite = engine.writer.write(calls, part.names, part.arrays, part.first_row, plain=plain)
        times = Times.of(everyone, outcome.began_ns)
        written_ns = time.monotonic_ns()
        run_ns, encode_ns = outcome.ended_ns - outcome.began_ns, written_ns - outcome.ended_ns
        account = Account(engine, part, outcome.rows, run_ns, encode_ns, outcome.began_ns, times, nonfinite)
        journal = self._journal
        if engine.recorder is not None and journal is not None:
            run = Run(outcome.rows, run_ns, written_ns, journal.wall_ns, plain)
            try:
                engine.recorder.answered(everyone, part.names, part.arrays, times, run)
            except NotReady as error:
                for call in everyone:
                    self._finish_failed(call, error)
                return
            if journal.commits:
                rows = sum([call.rows for call in everyone])
                journal.when_safe(
                    segments_of(everyone), rows, lambda error: self._answer_late(account, calls, replies, error)
                )
                return
        self._answer(account, calls, replies)

    def _refuse_overdue(self, part: Part, now_ns: int) -> None:
        """Refuse those of a part whose deadline passed while they ran: nobody waits for their answers any more."""
        part.plain = False
        for call in part.calls:
            if call.deadline_ns < now_ns and not call.gone:
                self.refuse_early(call, DeadlineExceeded("the deadline passed while the model was running"), now_ns)

    def _answer(self, account: Account, calls: list[Call], replies: list[tuple[bytes, int]]) -> None:
        """Tell the doors."""
        told = 0
        for call, (body, length) in zip(calls, replies, strict=True):
            if call.gone:
                continue
            call.gone = True
            call.outcome = ANSWERED
            told += 1
            try:
                call.door.answer(call, body, length)
            except Exception as error:  # its mates wait for their answers, whatever became of its connection
                _unheard(call, error)
        if told < len(account.part.calls):
            account.part.plain = False
        account.answered_ns = time.monotonic_ns()
        self._accounts.append(account)

    def _answer_late(
        self, account: Account, calls: list[Call], replies: list[tuple[bytes, int]], error: NotReady | None
    ) -> None:
        """Answer what waited for the disk; with an error where its records are not safely there.

        These stay as they are: they have their checksums.
        """
        if error is None:
            self._answer(account, calls, replies)
            self.settle()
            return
        now_ns = time.monotonic_ns()
        for call in account.part.calls:
            if not call.gone:
                self.refuse_early(call, error, now_ns)
            self._end(call)

    def _count(self, account: Account) -> None:
        engine, part, times, encode_ns = account.engine, account.part, account.times, account.encode_ns
        counters = engine.servable.counters
        answered = part.calls
        counters.ran(account.rows, int(sum(times.decode)), account.run_ns, encode_ns, time.time_ns() // 1_000_000)
        if not part.plain:
            answered = [call for call in part.calls if call.outcome == ANSWERED]
            times = Times.of(answered, account.began_ns)
        if answered:
            rows = len(answered) if part.plain else sum([call.rows for call in answered])
            total = times.since(account.answered_ns)
            counters.served(times.decode, times.queue, account.run_ns, encode_ns // len(answered), total, rows)
        if account.nonfinite:
            counters.nonfinite(account.nonfinite)
        if part.plain:
            self._end_plain(engine, part.calls)
        else:
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

    # -- the end

    def _finish_failed(self, call: Call, error: HeadgateError) -> None:
        if call.gone:
            self._record_end(call, error, time.monotonic_ns())
            self._end(call)
        else:
            self.refuse(call, error)

    def _record_end(self, call: Call, error: HeadgateError | None, now_ns: int) -> None:
        """The record of a call that gets no answer from its model; error None: its client left before it could run."""
        recorder, journal = self._engines[call.servable].recorder, self._journal
        if recorder is None or journal is None or call.done:
            return
        status, code = (GONE, "client-gone") if error is None else (error.status, error.code)
        if call.block is not None or call.segment is not None:
            recorder.ended(call, call.outcome or status, code, now_ns, journal.wall_ns)
        else:
            message = "the client left" if error is None else error.message
            recorder.refused(status, code, message, call.arrived_ns, now_ns, journal.wall_ns, call.request_id)

    def _end_plain(self, engine: Engine, calls: list[Call]) -> None:
        """`_end` for plain calls that were answered together."""
        count = len(calls)
        engine.servable.in_flight -= count
        self._admission.leave("", count)
        block = calls[0].block
        assert block is not None
        engine.reader.release(block, count)
        for call in calls:
            call.done = True

    def _end(self, call: Call) -> None:
        """Give back what a call holds, once."""
        if call.done:
            return
        call.done = True
        call.gone = True
        servable = call.servable
        servable.in_flight -= 1
        self._admission.leave(call.key)
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
