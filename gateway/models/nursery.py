"""The nursery: one process that has imported what trials need, and forks one for each version that is to be tried.

It is started with an empty environment and knows nothing of the server. For each trial it forks a warden, which forks
the trial, reads what it says and waits for its end: all that a model can break is the trial. A warden is told its job
and tells the end over a socket of its own; when that is closed at the other side, it kills the trial.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import NoReturn

import msgspec

from gateway import host
from gateway.models import trial
from gateway.models.quarantine import Ended

NAME = "headgate-trial"
"""What the main thread of a trial is called."""

MAX_VERDICT_BYTES = 64 << 20
MAX_SAID_BYTES = 64 << 10
"""Of what a trial writes, the first so many bytes are read as its verdict and the last so many as its complaint."""


def main() -> int:
    """Fork a warden for every socket that comes over standard input, until that is closed."""
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, _reap)
    with socket.socket(fileno=os.dup(0)) as asker:
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        while True:
            _, descriptors, _, _ = socket.recv_fds(asker, 1, 1)
            if not descriptors:
                return 0
            # Who asks sees the end of the socket where there was no room for another process.
            with socket.socket(fileno=descriptors[0]) as trial_asker, suppress(OSError):
                if not os.fork():
                    asker.close()
                    _leave(partial(_guard, trial_asker))


def _reap(number: int, frame: FrameType | None) -> None:
    """Take leave of wardens that have ended. Ignoring their signal would do that too, and lose the time they took."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _guard(asker: socket.socket) -> int:
    """The warden: run one trial and tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    job = asker.makefile("rb").readline()
    (verdicts, verdict), (complaints, complaint) = os.pipe(), os.pipe()
    try:
        child = os.fork()
    except OSError:
        return 1
    if not child:
        asker.close()
        os.dup2(complaint, 1)  # whatever a library prints must not mix with the verdict
        os.dup2(complaint, 2)
        for descriptor in (verdicts, complaints, complaint):
            os.close(descriptor)
        _leave(partial(_try, job, verdict))
    os.close(verdict)
    os.close(complaint)
    said = {verdicts: bytearray(), complaints: bytearray()}
    with selectors.DefaultSelector() as selector:
        for descriptor in (verdicts, complaints, asker.fileno()):
            selector.register(descriptor, selectors.EVENT_READ)
        waiting = set(said)
        while waiting:
            for key, _ in selector.select():
                if key.fd == asker.fileno():
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    return 0
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    waiting.discard(key.fd)
                    selector.unregister(key.fd)
                elif key.fd == complaints:
                    said[complaints] += piece
                    del said[complaints][:-MAX_SAID_BYTES]
                elif len(said[verdicts]) < MAX_VERDICT_BYTES:
                    said[verdicts] += piece
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):  # it is not waited for any more
        asker.sendall(msgspec.json.encode(Ended(code, bytes(said[verdicts]), bytes(said[complaints]))))
    return 0


def _try(job: bytes, verdict: int) -> int:
    """The trial: in a session of its own, and not for longer than its warden."""
    warden = os.getppid()
    if not host.end_with(warden):
        return 1
    host.set_name(NAME)
    os.setsid()
    return trial.main(job, verdict)


def _leave(work: Callable[[], int]) -> NoReturn:
    """Do the work of a forked process and end it, without going back to what it was forked from."""
    code = 1
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    raise SystemExit(main())
