"""Quarantine: a version is tried in a process of its own first, under limits of memory and time.

A file that crashes a parser, hangs or eats memory ends that process; the one that asked gets a sentence.
The job goes in and the report comes out as JSON, over a socket.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress

import msgspec

from gateway import host
from gateway.errors import LoadRejected, LoadUnavailable
from gateway.models.options import SessionOptions
from gateway.types import Contract

IDLE_S = 10.0
"""How long a nursery is kept after a trial, for the next one."""

_KILLED = "the process that tried it was killed from outside"
_SHUTTING_DOWN = "the server is shutting down"
_OUT_OF_MEMORY = re.compile("std::bad_alloc|(failed to|cannot) allocate memory|MemoryError", re.IGNORECASE)


class Job(msgspec.Struct, frozen=True):
    """What the child is told. `memory_bytes` is what it may take beyond its own start and twice the model file."""

    folder: str
    model: str
    version: int
    options: SessionOptions
    max_model_bytes: int
    memory_bytes: int
    batching: bool


class Report(msgspec.Struct, frozen=True):
    """What quarantine found out about a version that passed.

    `unbounded`: it has loops, so another input may take any time.
    `sha256` is of the very bytes that were tried, `memory_bytes` the resident growth of the child by loading and
    running, `run_s` the median of single runs, `batch_run_s` of runs with `batch_rows` rows (None: not batched).
    """

    contract: Contract
    sha256: str
    size: int
    verified: bool
    producer: str
    opsets: dict[str, int]
    memory_bytes: int
    load_s: float
    run_s: float | None
    batch_run_s: float | None
    golden_samples: int
    unranked: tuple[str, ...]
    notes: tuple[str, ...]
    batch_rows: int = 0
    unbounded: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """What the child answers: a report, or why the version was refused."""

    report: Report | None = None
    refused: str = ""


class Ended(msgspec.Struct, frozen=True):
    """How a trial ended: exit code or minus its signal, its verdict as JSON, the last it wrote to standard error."""

    code: int
    verdict: bytes
    said: bytes


class Quarantine:
    """Tries versions in processes that a nursery forks. Any thread may call; `close` ends the trials of all threads.

    The nursery lives while there are trials and `IDLE_S` longer: versions that come together share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trials: set[socket.socket] = set()
        self._nursery: tuple[socket.socket, subprocess.Popen[bytes]] | None = None
        self._idle: threading.Timer | None = None
        self._closed = False

    def try_version(self, job: Job, timeout_s: float) -> Report:
        """Try a version in a process of its own and wait for its report.

        Raises LoadRejected where the version is at fault, LoadUnavailable where it ran out of time or could not be
        tried.
        """
        try:
            answer = self._answer(msgspec.json.encode(job), time.monotonic() + timeout_s)
        except TimeoutError:
            message = f"it was not ready within {timeout_s:g} s in quarantine"
            raise LoadUnavailable(message, retry_after_s=10) from None
        except OSError as error:
            message = f"no process could be started to try it ({error.strerror})"
            raise LoadUnavailable(message, retry_after_s=10) from None
        if not answer:
            raise LoadUnavailable(_SHUTTING_DOWN if self._closed else _KILLED, retry_after_s=10)
        return _read(msgspec.json.decode(answer, type=Ended), job)

    def close(self) -> None:
        """End the trials that run, and start no more."""
        with self._lock:
            self._closed = True
            for trial in self._trials:
                with suppress(OSError):
                    trial.shutdown(socket.SHUT_RDWR)
        self._close_nursery()

    def _answer(self, job: bytes, deadline_s: float) -> bytes:
        """What a trial's warden says. Raises TimeoutError, another OSError where there is no process for it."""
        ours, theirs = socket.socketpair()
        with ours:
            try:
                with theirs:
                    self._begin(ours, theirs)
                return _ask(ours, job, deadline_s)
            finally:
                self._end(ours)

    def _begin(self, ours: socket.socket, theirs: socket.socket) -> None:
        with self._lock:
            if self._closed:
                raise LoadUnavailable(_SHUTTING_DOWN)
            self._stay()
            self._trials.add(ours)
            if self._nursery is not None and self._nursery[1].poll() is not None:
                self._forget()  # somebody has killed it
            nursery, _ = self._nursery or self._start()
            socket.send_fds(nursery, [b"t"], [theirs.fileno()])

    def _end(self, ours: socket.socket) -> None:
        with self._lock:
            self._trials.discard(ours)
            if not self._trials and not self._closed:
                self._idle = threading.Timer(IDLE_S, self._close_nursery)
                self._idle.daemon = True
                self._idle.start()

    def _close_nursery(self) -> None:
        with self._lock:
            if not self._trials or self._closed:
                self._stay()
                self._forget()

    def _stay(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _start(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "gateway.models.nursery"]
        with theirs:
            try:
                process = subprocess.Popen(
                    command, stdin=theirs.fileno(), start_new_session=True, env=host.bare_environment()
                )
            except OSError:
                ours.close()
                raise
        self._nursery = ours, process
        return self._nursery

    def _forget(self) -> None:
        if self._nursery is not None:
            ours, process = self._nursery
            self._nursery = None
            ours.close()
            process.kill()  # which no trial that runs would notice
            process.wait()


def try_version(job: Job, timeout_s: float) -> Report:
    """As Quarantine.try_version, for one version alone."""
    with closing(Quarantine()) as quarantine:
        return quarantine.try_version(job, timeout_s)


def _ask(trial: socket.socket, job: bytes, deadline_s: float) -> bytes:
    """Send a job and wait for all of the answer; empty where nobody gives one. Raises TimeoutError."""
    pieces: list[bytes] = []
    try:
        trial.sendall(job + b"\n")
        while not pieces or pieces[-1]:
            trial.settimeout(max(1e-3, deadline_s - time.monotonic()))
            pieces.append(trial.recv(1 << 16))
    except (BrokenPipeError, ConnectionResetError):
        return b""
    return b"".join(pieces)


def is_out_of_memory(text: str) -> bool:
    """Whether this is how a library says that memory ran out."""
    return _OUT_OF_MEMORY.search(text) is not None


def _read(ended: Ended, job: Job) -> Report:
    said, returncode = ended.said.decode(errors="replace").strip()[-2000:], ended.code
    if returncode == -signal.SIGKILL:
        # A model cannot do this to itself: the kernel was short of memory, or somebody ended the trial.
        raise LoadUnavailable(_KILLED, retry_after_s=10)
    if returncode != 0 and is_out_of_memory(said):
        raise LoadRejected(_memory_sentence(job))
    if returncode < 0:
        name = signal.Signals(-returncode).name
        raise LoadRejected(f"the model crashed the process that tried it ({name})")
    try:
        verdict = msgspec.json.decode(ended.verdict, type=Verdict)
    except msgspec.DecodeError:
        said = said.rpartition("\n")[2][:200]
        raise LoadRejected(f"the process that tried it ended with code {returncode}: {said}") from None
    if verdict.report is not None:
        return verdict.report
    if is_out_of_memory(verdict.refused):
        raise LoadRejected(_memory_sentence(job))
    raise LoadRejected(verdict.refused)


def _memory_sentence(job: Job) -> str:
    return f"it needs more memory than it may take: twice its file and {job.memory_bytes >> 20} MiB"
