"""Quarantine: a version is tried in a child process first, under limits of memory and time.

A file that crashes a parser, hangs or eats memory ends the child; the process that asked gets a sentence.
The job goes in and the report comes out as JSON, over pipes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import msgspec

from gateway.errors import LoadRejected, LoadUnavailable
from gateway.models.options import SessionOptions
from gateway.types import Contract

_OUT_OF_MEMORY = ("std::bad_alloc", "failed to allocate memory", "cannot allocate memory", "memoryerror")


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

    `sha256` is of the very bytes that were tried, `memory_bytes` the resident growth of the child by loading and
    running, `run_s` the median of single runs, `batch_run_s` of runs with `BATCH_ROWS` rows (None: not batched).
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


class Verdict(msgspec.Struct, frozen=True):
    """What the child answers: a report, or why the version was refused."""

    report: Report | None = None
    refused: str = ""


def try_version(job: Job, timeout_s: float) -> Report:
    """Try a version in a child process and wait for its report.

    Raises LoadRejected where the version is at fault, LoadUnavailable where it ran out of time or could not be tried.
    """
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
        raise LoadUnavailable(f"no process could be started to try it ({error.strerror})", retry_after_s=10) from None
    with child:
        try:
            out, err = child.communicate(msgspec.json.encode(job), timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise LoadUnavailable(f"it was not ready within {timeout_s:g} s in quarantine", retry_after_s=10) from None
    return _read(child.returncode, out, err, job)


def _environment() -> dict[str, str]:
    """Only what Python needs to start: a model file has no business with the secrets of the environment."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "PYTHONPATH": path, **kept}


def _read(returncode: int, out: bytes, err: bytes, job: Job) -> Report:
    if returncode < 0:
        name = signal.Signals(-returncode).name
        raise LoadRejected(f"the model crashed the process that tried it ({name})")
    try:
        verdict = msgspec.json.decode(out, type=Verdict)
    except msgspec.DecodeError:
        said = err.decode(errors="replace").strip().rpartition("\n")[2][:200]
        if any(words in said.lower() for words in _OUT_OF_MEMORY):
            raise LoadRejected(_memory_sentence(job)) from None
        raise LoadRejected(f"the process that tried it ended with code {returncode}: {said}") from None
    if verdict.report is not None:
        return verdict.report
    if any(words in verdict.refused.lower() for words in _OUT_OF_MEMORY):
        raise LoadRejected(_memory_sentence(job))
    raise LoadRejected(verdict.refused)


def _memory_sentence(job: Job) -> str:
    return f"it needs more memory than it may take: twice its file and {job.memory_bytes >> 20} MiB"
