"""Quarantine: a version is tried in a child process first, under limits of memory and time.

A file that crashes a parser, hangs or eats memory ends the child; the process that asked gets a sentence.
The job goes in and the report comes out as JSON, over pipes.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading

import msgspec

from gateway.errors import LoadRejected, LoadUnavailable
from gateway.models.options import SessionOptions
from gateway.types import Contract

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


class Quarantine:
    """The children that are trying versions now. Any thread may call; `close` ends the children of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def try_version(self, job: Job, timeout_s: float) -> Report:
        """Try a version in a child process and wait for its report.

        Raises LoadRejected where the version is at fault, LoadUnavailable where it ran out of time or could not be
        tried.
        """
        child = self._start()
        try:
            with child:
                try:
                    out, err = child.communicate(msgspec.json.encode(job), timeout_s)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.communicate()
                    message = f"it was not ready within {timeout_s:g} s in quarantine"
                    raise LoadUnavailable(message, retry_after_s=10) from None
        finally:
            with self._lock:
                self._children.discard(child)
        return _read(child.returncode, out, err, job)

    def close(self) -> None:
        """End the children that run, and start no more."""
        with self._lock:
            self._closed = True
            for child in self._children:
                child.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise LoadUnavailable("the server is shutting down")
            try:
                child = subprocess.Popen(
                    [sys.executable, "-m", "gateway.models.trial"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                    env=_environment(),
                )
            except OSError as error:
                message = f"no process could be started to try it ({error.strerror})"
                raise LoadUnavailable(message, retry_after_s=10) from None
            self._children.add(child)
            return child


def try_version(job: Job, timeout_s: float) -> Report:
    """As Quarantine.try_version, for one version alone."""
    return Quarantine().try_version(job, timeout_s)


def is_out_of_memory(text: str) -> bool:
    """Whether this is how a library says that memory ran out."""
    return _OUT_OF_MEMORY.search(text) is not None


def _environment() -> dict[str, str]:
    """Only what Python needs to start: a model file has no business with the secrets of the environment."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "PYTHONPATH": path, **kept}


def _read(returncode: int, out: bytes, err: bytes, job: Job) -> Report:
    said = err.decode(errors="replace").strip()[-2000:]
    if returncode == -signal.SIGKILL:
        # A model cannot do this to itself: the kernel was short of memory, or somebody ended the trial.
        raise LoadUnavailable("the process that tried it was killed from outside", retry_after_s=10)
    if returncode != 0 and is_out_of_memory(said):
        raise LoadRejected(_memory_sentence(job))
    if returncode < 0:
        name = signal.Signals(-returncode).name
        raise LoadRejected(f"the model crashed the process that tried it ({name})")
    try:
        verdict = msgspec.json.decode(out, type=Verdict)
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
