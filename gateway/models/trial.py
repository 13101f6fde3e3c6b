"""What quarantine does with a version: verify, scan, load, warm up, compare, measure. Runs inside the child process."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from gateway import host
from gateway.errors import HeadgateError, LoadRejected
from gateway.models.golden import MAX_GOLDEN_BYTES, Golden, difference, to_arrays
from gateway.models.manifest import GOLDEN, MANIFEST, MODEL, read_file, read_json, read_manifest, sha256, verified_file
from gateway.models.quarantine import Job, Report, Verdict, is_out_of_memory
from gateway.models.scan import ScanLimits, scan
from gateway.models.session import Session, first_line
from gateway.oip.datatypes import DATATYPES
from gateway.types import Array, Contract, TensorSpec

BATCH_ROWS = 4
SCALES = (1.0, 1e3, 1e-3, 1e4)
RTOL, ATOL = 1e-4, 1e-5
"""How far row i of a batch may be from row i alone: kernels may sum in another order for another batch size."""


def attempt(job: Job) -> Report:
    """Try one version. Raises LoadRejected with the reason, MemoryError where it needs more than it may take."""
    folder = Path(job.folder)
    model, golden, verified = _read(folder, job)
    facts = scan(model, ScanLimits(max_file_bytes=job.max_model_bytes))
    before = resident_bytes()
    started = time.monotonic()
    unranked = (*facts.unranked_inputs, *facts.unranked_outputs)
    session = Session(model, job.options, unranked)
    load_s = time.monotonic() - started
    contract = session.contract
    notes: list[str] = []
    feeds = _check_golden(session, golden) if golden else []
    feed = feeds[0] if feeds else made_up(contract)
    run_s = _warm_up(session, feed, required=bool(feeds), notes=notes)
    batch: _Batch | str = "" if job.batching else "batching is off in model.toml"
    if run_s is not None and job.batching:
        batch = _check_batch(session, feeds)
    if isinstance(batch, str) and batch:
        notes.append(f"not batched: {batch}")
    batched = isinstance(batch, _Batch)
    return Report(
        contract=Contract(contract.inputs, contract.outputs, batched=batched),
        sha256=sha256(model),
        size=len(model),
        verified=verified,
        producer=facts.producer,
        opsets=dict(facts.opsets),
        memory_bytes=max(0, resident_bytes() - before),
        load_s=load_s,
        run_s=run_s,
        batch_run_s=batch.seconds if isinstance(batch, _Batch) else None,
        golden_samples=len(feeds),
        unranked=unranked,
        notes=tuple(notes),
        unbounded=any(name in ("Loop", "Scan") for name in facts.op_types),
        batch_rows=batch.rows if isinstance(batch, _Batch) else 0,
    )


def _read(folder: Path, job: Job) -> tuple[bytes, Golden | None, bool]:
    """The model's bytes, its golden samples and whether a manifest vouches for both."""
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder, job.model, job.version)
        for name in manifest.files:
            if name != MODEL:
                verified_file(folder, name, manifest, MAX_GOLDEN_BYTES if name == GOLDEN else job.max_model_bytes)
        model = verified_file(folder, MODEL, manifest, job.max_model_bytes)
        has_golden = GOLDEN in manifest.files
        verified = True
    else:
        model = read_file(folder, MODEL, job.max_model_bytes)
        has_golden = (folder / GOLDEN).exists()
        verified = False
    return model, read_json(folder, GOLDEN, Golden, MAX_GOLDEN_BYTES) if has_golden else None, verified


def _check_golden(session: Session, golden: Golden) -> list[dict[str, Array]]:
    """Run every sample and compare; returns their inputs."""
    names = [spec.name for spec in session.contract.outputs]
    feeds = []
    for index, sample in enumerate(golden.samples):
        where = f"golden sample {index}"
        feed = to_arrays(sample.inputs, session.contract.inputs, f"{where} inputs")
        expected = to_arrays(sample.outputs, session.contract.outputs, f"{where} outputs")
        try:
            results = session.run(feed, names)
        except Exception as error:
            _raise_if_out_of_memory(error)
            raise LoadRejected(f"{where}: the model raised: {first_line(error)}") from None
        for name, got in zip(names, results, strict=True):
            wrong = difference(got, expected[name], golden)
            if wrong:
                raise LoadRejected(f"{where}: output {name!r} is {wrong}")
        feeds.append(feed)
    return feeds


def made_up(contract: Contract, rows: int = 1, seed: int = 0, *, free: int = 1, most: int = 1) -> dict[str, Array]:
    """Inputs of a plausible shape: free axes are `free` (axis 0 `rows`), floats are normal, integers 0 to `most`."""
    rng = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for spec in contract.inputs:
        dims = [free if dim == -1 else dim for dim in spec.shape or ()]
        if spec.shape and spec.shape[0] == -1:
            dims[0] = rows
        dtype = DATATYPES[spec.datatype].dtype
        if spec.datatype == "BYTES":
            array: Array = np.array([f"s{value}" for value in rng.integers(0, 9, int(np.prod(dims)))], dtype=object)
        elif spec.datatype == "BF16":
            array = (rng.standard_normal(dims).astype(np.float32).view(np.uint32) >> 16).astype(dtype)
        elif dtype.kind == "f":
            array = rng.standard_normal(dims).astype(dtype)
        else:
            array = rng.integers(0, most + 1, dims).astype(dtype)
        feed[spec.name] = array.reshape(dims)
    return feed


def uneven(contract: Contract, *, free: int, most: int) -> dict[str, Array]:
    """A batch whose rows are of very different sizes: what one row does to another shows where it is far from it."""
    feed = made_up(contract, BATCH_ROWS, seed=2, free=free, most=most)
    for spec in contract.inputs:
        if DATATYPES[spec.datatype].dtype.kind == "f":
            with np.errstate(over="ignore"):
                for row, scale in zip(feed[spec.name], SCALES, strict=True):
                    row *= scale
    return feed


def _warm_up(session: Session, feed: Mapping[str, Array], *, required: bool, notes: list[str]) -> float | None:
    """Median seconds of a run; None where made-up inputs do not suit the model, which is no fault of its own."""
    names = [spec.name for spec in session.contract.outputs]
    try:
        return _median_run_s(session, feed, names)
    except Exception as error:
        _raise_if_out_of_memory(error)
        if required:
            raise LoadRejected(f"the warm-up run failed: {first_line(error)}") from None
        notes.append(f"not warmed up: the model refuses made-up inputs ({first_line(error, 120)}); add golden samples")
        return None


def _raise_if_out_of_memory(error: Exception) -> None:
    """A model that asks for more than it may take is refused: in the server it would take it from the others."""
    if isinstance(error, MemoryError) or is_out_of_memory(str(error)):
        raise MemoryError from None


def _median_run_s(session: Session, feed: Mapping[str, Array], names: list[str]) -> float:
    times: list[float] = []
    while len(times) < 3 or (len(times) < 20 and sum(times) < 0.2):
        started = time.perf_counter()
        session.run(feed, names)
        times.append(time.perf_counter() - started)
    return float(np.median(times))


class _Batch(NamedTuple):
    """A batch that gave the same rows as its rows alone, and the median seconds of its run."""

    rows: int
    seconds: float


def _check_batch(session: Session, feeds: list[dict[str, Array]]) -> _Batch | str:
    """The time of a batch where axis 0 is a batch axis, else why it is not.

    This is a test and no proof: it finds rows that change others when they are normal, or of very different sizes.
    """
    contract = session.contract
    for spec in (*contract.inputs, *contract.outputs):
        if not spec.shape or spec.shape[0] != -1:
            return f"axis 0 of {spec.name!r} is not free"
    if not contract.inputs:
        return "the model has no inputs"
    if not any(-1 in spec.shape[1:] for spec in contract.inputs if spec.shape):
        for spec in contract.outputs:
            if spec.shape and -1 in spec.shape[1:]:
                return f"how large output {spec.name!r} is depends on values, and so may on those of other rows"
    batch = _stack(feeds, contract.inputs) or made_up(contract, BATCH_ROWS, seed=1)
    rows = len(next(iter(batch.values())))
    names = [spec.name for spec in contract.outputs]
    try:
        wrong = _mixes(session, batch, names)
        batch_s = _median_run_s(session, batch, names)
    except Exception as error:
        return f"a batch of {rows} rows failed ({first_line(error, 120)})"
    for free, most in ((3, 99), (1, 99), (1, 1)):
        if wrong:
            break
        try:
            wrong = _mixes(session, uneven(contract, free=free, most=most), names)
        except Exception:
            # Inputs that a model refuses say nothing about its rows: less is tried.
            continue
        break
    return wrong or _Batch(rows, batch_s)


def _mixes(session: Session, batch: dict[str, Array], names: list[str]) -> str:
    """In words, where a row in a batch is not what it is alone; raises what the session does."""
    rows = len(next(iter(batch.values())))
    together = session.run(batch, names)
    alone = [session.run({name: array[row : row + 1] for name, array in batch.items()}, names) for row in range(rows)]
    for index, name in enumerate(names):
        if together[index].ndim == 0 or together[index].shape[0] != rows:
            return f"output {name!r} of a batch of {rows} has shape {list(together[index].shape)}"
        for row in range(rows):
            own = alone[row][index]
            # Large values that cancel leave errors of their own size.
            largest = np.abs(own[np.isfinite(own)]).max(initial=0.0) if own.dtype.kind == "f" else 0.0
            golden = Golden([], RTOL, ATOL + RTOL * float(largest))
            wrong = difference(own, together[index][row : row + 1], golden)
            if wrong:
                return f"row {row} of output {name!r} alone is not what it is in a batch: {wrong}"
    return ""


def _stack(feeds: list[dict[str, Array]], specs: tuple[TensorSpec, ...]) -> dict[str, Array] | None:
    """Golden inputs of one shape as one batch; None where there are fewer than two rows."""
    if not feeds:
        return None
    shapes = {name: array.shape[1:] for name, array in feeds[0].items()}
    alike = [feed for feed in feeds if all(array.shape[1:] == shapes[name] for name, array in feed.items())]
    batch = {spec.name: np.concatenate([feed[spec.name] for feed in alike])[:16] for spec in specs}
    return batch if len(next(iter(batch.values()))) > 1 else None


def resident_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return pages * 4096


def _data_bytes() -> int:
    """Private writable memory of this process, which RLIMIT_DATA limits."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def _limit_memory(job: Job) -> None:
    """Allow what the job says, and once more the bytes of the model, which are read first.

    Before any file of the version is opened: the samples of a version can be as hungry as its model.
    """
    file_bytes = 0
    with suppress(OSError):  # a file that is not there is refused by who reads it
        file_bytes = min((Path(job.folder) / MODEL).stat().st_size, job.max_model_bytes)
    allowed = _data_bytes() + 3 * file_bytes + job.memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))


def main(job: bytes, verdict: int) -> int:
    """The child: limits first, then one job as JSON, and its verdict to a descriptor; returns the exit code."""
    host.stand_back(10)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    told = msgspec.json.decode(job, type=Job)
    _limit_memory(told)
    try:
        answer = Verdict(report=attempt(told))
    except MemoryError:
        answer = Verdict(refused="MemoryError")
    except HeadgateError as error:
        answer = Verdict(refused=error.message)
    with open(verdict, "wb", buffering=0) as pipe:
        pipe.write(msgspec.json.encode(answer))
    return 0
