"""The protocol's descriptive documents: server, model, configuration, statistics, repository index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.oip.datatypes import DATATYPES
from gateway.telemetry.counters import VersionCounters
from gateway.types import Contract, TensorSpec

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)


def server_metadata(version: str) -> dict[str, Any]:
    """The answer to ``GET /v2``."""
    return {"name": "headgate", "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(name: str, versions: Iterable[int], contract: Contract) -> dict[str, Any]:
    """The answer to ``GET /v2/models/M``: shapes as the graph has them, -1 for a free axis."""
    return {
        "name": name,
        "versions": [str(version) for version in versions],
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in contract.inputs],
        "outputs": [_tensor(spec) for spec in contract.outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": list(spec.shape if spec.shape is not None else (-1,)),
    }


def model_config(name: str, rule: Mapping[str, Any], contract: Contract, max_batch_rows: int) -> dict[str, Any]:
    """The answer to ``GET /v2/models/M/config``, in the words of Triton's ModelConfig.

    With `max_batch_rows` > 0 the batch axis is left out of the dims and `dynamic_batching` is there.
    """
    skip = 1 if max_batch_rows else 0

    def dims(specs: Iterable[TensorSpec]) -> list[dict[str, Any]]:
        return [
            {
                "name": spec.name,
                "data_type": DATATYPES[spec.datatype].config_name,
                "dims": [str(dim) for dim in (spec.shape if spec.shape is not None else (-1,))[skip:]],
            }
            for spec in specs
        ]

    document: dict[str, Any] = {
        "name": name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": dict(rule),
        "max_batch_size": max_batch_rows,
        "input": dims(contract.inputs),
        "output": dims(contract.outputs),
        "instance_group": [{"name": name, "kind": "KIND_CPU", "count": 1}],
        "model_transaction_policy": {"decoupled": False},
    }
    if max_batch_rows:
        document["dynamic_batching"] = {"preferred_batch_size": [], "max_queue_delay_microseconds": 0}
    return document


def version_policy(policy: str, count: int, only: Iterable[int]) -> dict[str, Any]:
    """A version rule in the words of Triton's ModelConfig."""
    if policy == "latest":
        return {"latest": {"num_versions": count}}
    return {"all": {}} if policy == "all" else {"specific": {"versions": [str(version) for version in only]}}


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def model_statistics(name: str, version: int, counters: VersionCounters, memory_bytes: int) -> dict[str, Any]:
    """One member of ``model_stats``, with every key that clients read, also those that are always zero here."""
    phases = {phase: counters.histogram(phase) for phase in ("total", "queue", "decode", "run", "encode")}
    failures, failures_ns = counters.failures
    never = _duration(0, 0)
    return {
        "name": name,
        "version": str(version),
        "last_inference": counters.last_inference_ms,
        "inference_count": counters.rows,
        "execution_count": counters.runs,
        "inference_stats": {
            "success": _duration(phases["total"].total, phases["total"].sum_ns),
            "fail": _duration(failures, failures_ns),
            "queue": _duration(phases["queue"].total, phases["queue"].sum_ns),
            "compute_input": _duration(phases["decode"].total, phases["decode"].sum_ns),
            "compute_infer": _duration(phases["run"].total, phases["run"].sum_ns),
            "compute_output": _duration(phases["encode"].total, phases["encode"].sum_ns),
            "cache_hit": never,
            "cache_miss": never,
        },
        # Triton counts here the replies of decoupled models, which give many to one request; there are none here.
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": batch.rows,
                "compute_input": _duration(batch.runs, batch.input_ns),
                "compute_infer": _duration(batch.runs, batch.infer_ns),
                "compute_output": _duration(batch.runs, batch.output_ns),
            }
            for batch in counters.batches()
        ],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": memory_bytes}],
    }


def index_entry(name: str, version: int, state: str, reason: str) -> dict[str, Any]:
    """One entry of the repository index."""
    return {"name": name, "version": str(version), "state": state, "reason": reason}
