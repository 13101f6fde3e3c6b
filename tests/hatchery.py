"""`headgate` commands from a process that has imported the program: each is a fork of it.

A command spends half a second of a core on imports, and the suite runs a hundred and more. What comes after them is as
in a shell: a process with arguments, an environment and descriptors of its own, which ends as the interpreter
ends. What a command reads before its first line, as PYTHONPATH, it does not read here: tests of that use `subprocess`.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_JOB_BYTES = 128 << 10
SET_CHILD_SUBREAPER = 36  # of prctl


class Command:
    """A running `headgate` command, with what tests use of subprocess.Popen. `stdout` is its pipe.

    One that `is_reaper` inherits orphans, as process 1 of a container does.
    """

    def __init__(
        self, arguments: Sequence[str], *, stderr: int, env: Mapping[str, str], is_reaper: bool = False
    ) -> None:
        job = json.dumps([list(arguments), dict(env), is_reaper]).encode()
        said, out = os.pipe()
        self._told, teller = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            socket.send_fds(_hatchery(), [job], [out, stderr, teller.fileno()])
        finally:
            os.close(out)
            teller.close()
        self.stdout = os.fdopen(said, "rb")
        self.pid = int(self._told.recv(20))
        self.returncode: int | None = None
        self._asking = threading.Lock()

    def poll(self) -> int | None:
        """Its exit code, negative for a signal, None while it runs."""
        with suppress(TimeoutError, BlockingIOError):
            self._learn(0)
        return self.returncode

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        try:
            return self._learn(timeout_s)
        except TimeoutError:
            raise subprocess.TimeoutExpired(f"headgate, process {self.pid}", timeout_s or 0) from None

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _learn(self, timeout_s: float | None) -> int:
        with self._asking:
            if self.returncode is None:
                self._told.settimeout(timeout_s)
                told = self._told.recv(20)
                assert told, "what starts commands has ended"
                self.returncode = int(told)
                self._told.close()
            return self.returncode


@cache
def _hatchery() -> socket.socket:
    """Where commands are asked for. The process behind it ends with this one, and ends what it has started."""
    asker, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other:
        process = subprocess.Popen([sys.executable, "-m", __name__], stdin=other, stdout=subprocess.DEVNULL, cwd=ROOT)

    def end() -> None:
        asker.close()
        process.wait(30)

    atexit.register(end)
    return asker


def main() -> int:
    """Fork for every command that comes over standard input, and tell how each ended. Returns in every process."""
    from gateway import cli, server  # noqa: F401

    gc.collect()
    gc.freeze()
    running: dict[int, socket.socket] = {}
    asker = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    ends, ended = socket.socketpair()
    ended.setblocking(False)
    signal.set_wakeup_fd(ended.fileno())
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    with selectors.DefaultSelector() as selector:
        for each in (asker, ends):
            selector.register(each, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if ends in ready:
                ends.recv(1 << 10)
                _tell(running)
            if asker not in ready:
                continue
            job, descriptors, _, _ = socket.recv_fds(asker, MAX_JOB_BYTES, 3)
            if not job:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                return 0
            teller = socket.socket(fileno=descriptors.pop())
            pid = os.fork()
            if not pid:
                break
            for descriptor in descriptors:
                os.close(descriptor)
            teller.send(str(pid).encode())
            running[pid] = teller
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    for each in (asker, ends, ended, teller, *running.values()):
        each.close()
    for number, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    arguments, environment, is_reaper = json.loads(job)
    if is_reaper:
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1)
    sys.argv = ["headgate", *arguments]
    # What the import of the program has set stays set.
    os.environ.update(environment)
    for name in os.environ.keys() - environment.keys() - {"ORT_DISABLE_TELEMETRY", "OPENBLAS_NUM_THREADS"}:
        del os.environ[name]
    time.tzset()
    return cli.main(arguments)


def _tell(running: dict[int, socket.socket]) -> None:
    """Tell who asked for a command how it ended."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            with running.pop(found[0]) as teller, suppress(BrokenPipeError):
                teller.send(str(os.waitstatus_to_exitcode(found[1])).encode())


if __name__ == "__main__":
    raise SystemExit(main())
