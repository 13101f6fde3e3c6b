"""A program that lets the ledger work in child processes and has each killed at another moment.

``python -m tests.ledger.killed DATA ROUNDS``: in round n new events and predictions are written, and a child that folds
them kills itself (SIGKILL) just before its n-th statement, or just before or after the commit that n comes to.
It prints how many children were killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from sqlalchemy import Engine, event

from gateway.feedback.event import FOLDER, Event, Source, encode, keyed_id
from gateway.journal.frames import FrameFile
from gateway.ledger import dialect, service
from gateway.ledger.service import Writer
from tests.ledger.rig import SECOND, START, Declared, HandClock, open_segment, write

PER_ROUND = 5
FEW = 4
"""Events in one transaction: every child has several."""


class Countdown:
    """Kills this process when so many things have happened."""

    def __init__(self, left: int) -> None:
        self._left = left

    def tick(self, *_: object) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def child(data: Path, clock: HandClock, moment: int) -> None:
    """Fold until nothing is left, or the moment comes."""
    countdown = Countdown(moment)
    for happening in ("before_cursor_execute", "after_cursor_execute", "commit", "begin"):
        event.listen(Engine, happening, countdown.tick)
    service.EVENTS = FEW  # type: ignore[misc]
    writer = Writer(dialect.location(data), data, Declared(), clock)
    while writer.step():
        pass


def main(data: Path, rounds: int) -> None:
    """See the module."""
    clock = HandClock()
    segment = open_segment(data, capacity=10 * rounds)
    (data / FOLDER).mkdir()
    files = [FrameFile(data / FOLDER / f"{name}.feedback") for name in "ab"]
    predictions: list[str] = []
    said: list[Event] = []
    killed = 0
    for number in range(1, rounds + 1):
        clock.sleep(3)
        predictions.append(write(segment, clock.time_ns - 5 * SECOND, request_id=f"order-{number}"))
        # Some come before the prediction that they are about, some speak of old ones, some take others back.
        about = [predictions[-1], predictions[number // 2], f"{segment.spec.prefix}{number + 2:08x}"]
        new = [
            Event(
                feedback_id=keyed_id("killed", f"{number} {index}"),
                model="flights",
                name="late",
                value=(number + index) % 3 == 0,
                received_ns=clock.time_ns + index,
                prediction_id=about[index] if index < 3 else "",
                request_id="" if index < 3 else f"order-{number - 1}",
                source=Source("SYSTEM", "ab"[number % 2]),
            )
            for index in range(PER_ROUND - 1)
        ]
        target = (said or new)[number * 7 % len(said or new)].feedback_id
        new.append(
            Event(feedback_id=keyed_id("delete", target), op="delete", supersedes=target, received_ns=clock.time_ns)
        )
        said += new[:-1]
        files[number % 2].append(*map(encode, new))
        pid = os.fork()
        if pid == 0:
            try:
                child(data, clock, number)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
        killed += os.WIFSIGNALED(status)
    print(killed, START)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
