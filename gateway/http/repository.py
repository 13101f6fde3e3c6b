"""The repository extension: index, load, unload, reload, aliases."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import Forbidden, HeadgateError, InvalidRequest, UnknownVersion
from gateway.http.description import config_document
from gateway.http.messages import json_response, read_document
from gateway.models.manifest import is_alias, parse_version
from gateway.oip import documents
from gateway.oip.jsontext import kind, quote
from gateway.state import Gateway, gateway_of


async def index(request: Request) -> Response:
    """``POST /v2/repository/index``; the body may be empty or ``{"ready": bool}``."""
    document = await read_document(request)
    only_ready = document.get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidRequest(f"ready must be true or false, got {kind(only_ready)}", field="ready")
    entries = []
    for name, model in sorted(gateway_of(request).table.models.items()):
        statuses = [status for status in model.statuses if not only_ready or status.state == "READY"]
        entries += [documents.index_entry(name, each.version, each.state, each.reason) for each in statuses]
        if not model.statuses and not only_ready:
            entries.append({"name": name, "state": "UNAVAILABLE", "reason": model.error})
    return json_response(entries)


async def load(request: Request) -> Response:
    """``POST /v2/repository/models/{model}[/versions/{version}]/load``: answers when it is ready."""
    gateway = _writable(request)
    name = request.path_params["model"]
    await _check_load_parameters(request, gateway, name)
    try:
        await gateway.repository.load(name, _version(request))
    except HeadgateError as error:
        # Clients look for these words whatever the reason, an unknown name included.
        if "failed to load" not in error.message:
            error.message = f"failed to load {name[:64]!r}: {error.message}"
        raise
    return Response(status_code=200)


async def reload(request: Request) -> Response:
    """``POST /v2/repository/models/{model}[/versions/{version}]/reload``: as load, also where nothing changed."""
    gateway = _writable(request)
    await read_document(request)
    await gateway.repository.reload(request.path_params["model"], _version(request))
    return Response(status_code=200)


async def unload(request: Request) -> Response:
    """``POST /v2/repository/models/{model}[/versions/{version}]/unload``: answers when the last request is done."""
    gateway = _writable(request)
    for key, value in (await _parameters(request)).items():
        where = f"parameters.{key[:64]}"
        if key != "unload_dependents":
            raise InvalidRequest(f"{where} is unknown; an unload takes unload_dependents", field=where)
        # There are no ensembles here, so no model depends on another one, whichever of the two is said.
        if not isinstance(value, bool):
            raise InvalidRequest(f"{where} must be true or false, got {kind(value)}", field=where)
    await gateway.repository.unload(request.path_params["model"], _version(request))
    return Response(status_code=200)


async def aliases(request: Request) -> Response:
    """``GET /v2/repository/models/{model}/aliases``."""
    model = gateway_of(request).table.model(request.path_params["model"])
    return json_response({alias: str(version) for alias, version in sorted(model.aliases.items())})


async def put_alias(request: Request) -> Response:
    """``PUT /v2/repository/models/{model}/aliases/{alias}`` with ``{"version": "2"}``."""
    gateway = _writable(request)
    name, alias = request.path_params["model"], request.path_params["alias"]
    if not is_alias(alias):
        raise InvalidRequest(f"alias {quote(alias)} must be a small letter and up to 31 of a-z 0-9 _ -", field="alias")
    given = (await read_document(request)).get("version")
    version = parse_version(str(given)) if isinstance(given, str | int) and not isinstance(given, bool) else None
    if version is None:
        raise InvalidRequest(f"version must be a positive whole number, got {kind(given)}", field="version")
    await gateway.repository.move_alias(name, alias, version)
    return json_response({"name": name, "alias": alias, "version": str(version)})


async def delete_alias(request: Request) -> Response:
    """``DELETE /v2/repository/models/{model}/aliases/{alias}``."""
    gateway = _writable(request)
    await gateway.repository.move_alias(request.path_params["model"], request.path_params["alias"], None)
    return Response(status_code=204)


def _writable(request: Request) -> Gateway:
    gateway = gateway_of(request)
    if not gateway.settings.repository_api:
        raise Forbidden("changing the repository over HTTP is switched off (setting repository_api)")
    return gateway


def _version(request: Request) -> int | None:
    text = request.path_params.get("version")
    if text is None:
        return None
    version = parse_version(text)
    if version is None:
        raise UnknownVersion(request.path_params["model"], text[:64])
    return version


async def _parameters(request: Request, max_bytes: int = 1 << 20) -> dict[str, Any]:
    parameters = (await read_document(request, max_bytes)).get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"parameters must be an object, got {kind(parameters)}", field="parameters")
    return parameters


async def _check_load_parameters(request: Request, gateway: Gateway, name: str) -> None:
    """File uploads are refused; a `config` is taken only where it says what is so already."""
    for key, value in (await _parameters(request, gateway.settings.max_body_bytes)).items():
        where = f"parameters.{key[:64]}"
        if key.startswith("file:"):
            raise InvalidRequest(f"failed to load {name[:64]!r}: {where}: files are not taken over HTTP", field=where)
        if key != "config":
            raise InvalidRequest(f"failed to load {name[:64]!r}: {where} is unknown; a load takes config", field=where)
        _check_config(value, gateway, name)


def _check_config(value: Any, gateway: Gateway, name: str) -> None:
    where = "parameters.config"
    try:
        wanted = orjson.loads(value) if isinstance(value, str) else None
    except orjson.JSONDecodeError:
        wanted = None
    if not isinstance(wanted, dict):
        raise InvalidRequest(f"{where} must be a JSON object in a string, got {kind(value)}", field=where)
    model = gateway.table.models.get(name)
    present = config_document(gateway, name, None) if model is not None and model.default() is not None else {}
    for key, member in wanted.items():
        if key not in present or present[key] != member:
            raise InvalidRequest(
                f"failed to load {name[:64]!r}: {where}.{key[:64]} cannot be changed over HTTP; edit model.toml",
                field=f"{where}.{key[:64]}",
            )
