"""The application: every route in one list, every middleware in another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import ClientError, HeadgateError, InvalidRequest, MethodNotAllowed, NotFound, ServerError
from gateway.http import description, feedback, inference, predictions, repository
from gateway.http.messages import error_response
from gateway.http.middleware import Access, Defects, RequestId
from gateway.state import Gateway

log = logging.getLogger("headgate.http")

_MODEL = "/v2/models/{model}"
_VERSION = "/v2/models/{model}/versions/{version}"
_REPOSITORY = "/v2/repository/models/{model}"
_REPOSITORY_VERSION = "/v2/repository/models/{model}/versions/{version}"
_ALIAS = "/v2/repository/models/{model}/aliases/{alias}"
_ANY = ["GET", "POST", "PUT", "DELETE"]

ROUTES = (
    # Routes are tried in this order, and inference seldom comes here: the fast door takes it.
    Route("/v1/feedback", feedback.put, methods=["POST"]),
    Route("/v1/feedback:batch", feedback.put_many, methods=["POST"]),
    Route("/v1/feedback/{feedback_id}", feedback.delete, methods=["DELETE"]),
    Route("/v1/feedback-links", feedback.make_link, methods=["POST"]),
    Route("/v1/predictions/{prediction_id}", predictions.prediction),
    Route("/f/{token}", feedback.ask),
    Route("/f/{token}", feedback.vote, methods=["POST"]),
    Route(f"{_MODEL}/infer", inference.infer, methods=["POST"]),
    Route(f"{_VERSION}/infer", inference.infer, methods=["POST"]),
    Route("/v2/health/live", description.live),
    Route("/v2/health/ready", description.ready),
    Route("/v2", description.server),
    Route("/v2/models", description.models),
    Route("/v2/models/stats", description.stats),
    Route(_MODEL, description.model),
    Route(_VERSION, description.model),
    Route(f"{_MODEL}/status", description.model_status),
    Route(f"{_MODEL}/ready", description.model_ready),
    Route(f"{_VERSION}/ready", description.model_ready),
    Route(f"{_MODEL}/config", description.model_config),
    Route(f"{_VERSION}/config", description.model_config),
    Route(f"{_MODEL}/stats", description.stats),
    Route(f"{_VERSION}/stats", description.stats),
    Route("/v2/repository/index", repository.index, methods=["POST"]),
    Route(f"{_REPOSITORY}/load", repository.load, methods=["POST"]),
    Route(f"{_REPOSITORY}/reload", repository.reload, methods=["POST"]),
    Route(f"{_REPOSITORY}/unload", repository.unload, methods=["POST"]),
    Route(f"{_REPOSITORY_VERSION}/load", repository.load, methods=["POST"]),
    Route(f"{_REPOSITORY_VERSION}/reload", repository.reload, methods=["POST"]),
    Route(f"{_REPOSITORY_VERSION}/unload", repository.unload, methods=["POST"]),
    Route(f"{_REPOSITORY}/aliases", repository.aliases),
    Route(_ALIAS, repository.put_alias, methods=["PUT"]),
    Route(_ALIAS, repository.delete_alias, methods=["DELETE"]),
    Route("/metrics", description.prometheus),
    Route("/v2/trace/setting", description.not_offered, methods=_ANY),
    Route(f"{_MODEL}/trace/setting", description.not_offered, methods=_ANY),
    Route("/v2/logging", description.not_offered, methods=_ANY),
    Route("/v2/systemsharedmemory/{rest:path}", description.not_offered, methods=_ANY),
    Route("/v2/cudasharedmemory/{rest:path}", description.not_offered, methods=_ANY),
)


def build(gateway: Gateway, *, admin: bool = False, more: Sequence[Route] = ()) -> Starlette:
    """The ASGI application of a gateway. The admin port has every route but inference, and `more` of its own."""
    app = Starlette(
        routes=[*[route for route in ROUTES if not (admin and route.endpoint is inference.infer)], *more],
        middleware=[
            Middleware(RequestId),
            Middleware(Access, counters=gateway.counters, log_requests=gateway.settings.access_log),
            Middleware(Defects),
        ],
        exception_handlers={
            HeadgateError: _known,
            HTTPException: _routing,
            ClientDisconnect: _cut,
        },
    )
    app.router.redirect_slashes = False
    app.state.gateway = gateway
    return app


async def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, HeadgateError)
    if isinstance(error, ServerError) and error.__cause__ is not None:
        facts = {"event": "internal-error", "request_id": request.scope["state"]["request_id"]}
        log.error("internal error", exc_info=error.__cause__, extra=facts)
    return error_response(request, error)


async def _routing(request: Request, error: Exception) -> Response:
    """What Starlette's router refuses: an unknown path or a wrong verb."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return error_response(request, MethodNotAllowed(phrase, headers={"Allow": _allowed(request)}))
    return error_response(request, NotFound(phrase) if error.status_code == 404 else ClientError(phrase))


async def _cut(request: Request, error: Exception) -> Response:
    """The client left in the middle of its body: nobody reads this, but it is counted, and as a fault of the client."""
    return error_response(request, InvalidRequest("the body ended before it was whole", field="body"))


def _allowed(request: Request) -> str:
    """The verbs of every route with this path, since one path may have several routes."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.path_regex.match(request.scope["path"]):
            methods |= route.methods or set()
    return ", ".join(sorted(methods))
