"""Endpoints that describe: health, metadata, configuration, statistics, metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway import __version__
from gateway.errors import NotOffered, NotReady
from gateway.http.messages import json_response
from gateway.models.table import ModelTable
from gateway.oip import documents
from gateway.state import Gateway, gateway_of
from gateway.telemetry import metrics


async def live(request: Request) -> Response:
    """``GET /v2/health/live``: the loop turns."""
    return json_response({"live": True})


async def ready(request: Request) -> Response:
    """``GET /v2/health/ready``: 503 until every model is ready or has failed, and while shutting down.

    One broken model does not take the others out of service; it is named in `models`.
    """
    gateway = gateway_of(request)
    troubles = {
        name: _trouble(model) for name, model in sorted(gateway.table.models.items()) if model.default() is None
    }
    reason = ""
    if gateway.draining:
        reason = "the server is shutting down"
    elif not gateway.settled():
        reason = "models are loading"
    elif troubles and len(troubles) == len(gateway.table.models):
        reason = "no model is ready"
    if reason:
        document = {"ready": False, "error": reason, "code": NotReady.code, "models": troubles}
        return json_response(document, 503, {"Retry-After": "1"})
    return json_response({"ready": True, **({"models": troubles} if troubles else {})})


def _trouble(model: ModelTable) -> str:
    reasons = [status.reason for status in model.statuses if status.reason]
    return model.error or (reasons[-1] if reasons else "it has no version that is ready")


async def server(request: Request) -> Response:
    """``GET /v2``."""
    return json_response(documents.server_metadata(__version__))


async def models(request: Request) -> Response:
    """``GET /v2/models``."""
    return json_response({"models": sorted(gateway_of(request).table.models)})


async def model(request: Request) -> Response:
    """``GET /v2/models/{model}[/versions/{version}]``: the contract, and the state of every version."""
    table = gateway_of(request).table
    name, slot = request.path_params["model"], request.path_params.get("version")
    servable = table.find(name, slot)
    known = table.model(name)
    versions = sorted(known.ready) if slot is None else [servable.version]
    document = documents.model_metadata(name, versions, servable.contract)
    document["status"] = _status(known)
    document["aliases"] = {alias: str(version) for alias, version in known.aliases.items()}
    return json_response(document)


def _status(known: ModelTable) -> list[dict[str, Any]]:
    rows = []
    for status in known.statuses:
        row: dict[str, Any] = {"version": str(status.version), "state": status.state, "reason": status.reason}
        servable = known.ready.get(status.version)
        if servable is not None:
            row["verified"] = servable.report.verified
            row["sha256"] = servable.report.sha256
            row["notes"] = list(servable.report.notes)
        rows.append(row)
    return rows


async def model_status(request: Request) -> Response:
    """``GET /v2/models/{model}/status``: the state of every version, also of a model that cannot serve."""
    known = gateway_of(request).table.model(request.path_params["model"])
    aliases = {alias: str(version) for alias, version in known.aliases.items()}
    return json_response({"name": known.name, "error": known.error, "versions": _status(known), "aliases": aliases})


async def model_ready(request: Request) -> Response:
    """``GET /v2/models/{model}[/versions/{version}]/ready``."""
    name, slot = request.path_params["model"], request.path_params.get("version")
    gateway_of(request).table.find(name, slot)
    return json_response({"name": name, "ready": True})


async def model_config(request: Request) -> Response:
    """``GET /v2/models/{model}[/versions/{version}]/config``."""
    name, slot = request.path_params["model"], request.path_params.get("version")
    return json_response(config_document(gateway_of(request), name, slot))


def config_document(gateway: Gateway, name: str, slot: str | None) -> dict[str, Any]:
    """The configuration of a version in the words of Triton's ModelConfig."""
    servable = gateway.table.find(name, slot)
    rule = servable.config.versions
    policy = documents.version_policy(rule.policy, rule.count, rule.only)
    return documents.model_config(name, policy, servable.contract, servable.max_batch_rows)


async def stats(request: Request) -> Response:
    """``GET /v2/models[/{model}[/versions/{version}]]/stats``."""
    table = gateway_of(request).table
    name, slot = request.path_params.get("model"), request.path_params.get("version")
    if name is None:
        found = [servable for _, known in sorted(table.models.items()) for _, servable in sorted(known.ready.items())]
    elif slot is None:
        found = [servable for _, servable in sorted(table.model(name).ready.items())]
    else:
        found = [table.find(name, slot)]
    counters = gateway_of(request).read_counters()
    rows = [
        documents.model_statistics(
            each.model, each.version, counters.version(each.model, each.version), each.report.memory_bytes
        )
        for each in found
    ]
    return json_response({"model_stats": rows})


async def prometheus(request: Request) -> Response:
    """``GET /metrics``, rendered in a thread."""
    content = await asyncio.to_thread(metrics.render, gateway_of(request).registry)
    return Response(content, headers={"content-type": metrics.CONTENT_TYPE})


async def not_offered(request: Request) -> Response:
    """The extensions that are left out on purpose."""
    raise NotOffered("shared memory, trace and logging extensions are not offered by this server")
