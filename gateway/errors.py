"""The error tree. Each class declares the HTTP status and the kebab-case code it is answered with.

HeadgateError
  ClientError                      4xx: what was sent is at fault
    InvalidRequest                 400 invalid-request, names the `field`
      InvalidJSON                  400 invalid-json
      InvalidFeedback              422 invalid-feedback
    Forbidden                      403 forbidden
    NotFound                       404 not-found
      UnknownModel                 404 unknown-model
      UnknownVersion               404 unknown-version
    MethodNotAllowed               405 method-not-allowed
    RequestTimeout                 408 request-timeout
    Conflict                       409 conflict
    PayloadTooLarge                413 payload-too-large
    URITooLong                     414 uri-too-long
    UnsupportedEncoding            415 unsupported-encoding
    HeadersTooLarge                431 headers-too-large
    LoadRejected                   400 load-failed, the files of the version are at fault
  NotOffered                       501 not-offered
  Overload                         the request is fine, the server cannot take it now
    QueueFull                      429 queue-full
      QuotaExceeded                429 quota-exceeded
    NotReady                       503 not-ready
      LoadUnavailable              503 load-failed, resources were missing
    DeadlineExceeded               504 deadline-exceeded
  ServerError                      500 internal, the text stays in the log
    ModelFailed                    500 model-failed, the model itself raised
  SettingError                     no HTTP: exit code 2
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class HeadgateError(Exception):
    """The root. `message` is one sentence for the client: it never holds a path, a host name or a traceback."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, field: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.headers = dict(headers or {})

    def body(self, request_id: str | None = None) -> dict[str, Any]:
        """The one error shape; `error` is always a string because protocol clients demand it."""
        document: dict[str, Any] = {"error": self.message, "code": self.code}
        if self.field is not None:
            document["field"] = self.field
        if request_id is not None:
            document["request_id"] = request_id
        return document


class ClientError(HeadgateError):
    """What the client sent is at fault."""

    status = 400
    code = "bad-request"


class InvalidRequest(ClientError):
    """A malformed request; `field` is the path of what was wrong, such as ``inputs[2].shape``."""

    code = "invalid-request"


class InvalidJSON(InvalidRequest):
    """The body is not strict JSON."""

    code = "invalid-json"


class InvalidFeedback(InvalidRequest):
    """Feedback that no declaration allows; the message holds the declaration."""

    status = 422
    code = "invalid-feedback"


class NotFound(ClientError):
    """No such route or resource."""

    status = 404
    code = "not-found"


class UnknownModel(NotFound):
    """No model of that name; clients test for the first words of the message."""

    code = "unknown-model"

    def __init__(self, name: str) -> None:
        super().__init__(f"Request for unknown model: {name[:64]!r} is not found")


class UnknownVersion(NotFound):
    """The model is known, the version or alias is not."""

    code = "unknown-version"

    def __init__(self, name: str, version: str) -> None:
        super().__init__(f"Request for unknown model version: {name[:64]!r} version {version[:64]!r} is not found")


class Forbidden(ClientError):
    """The operation is switched off or not allowed to this caller."""

    status = 403
    code = "forbidden"


class MethodNotAllowed(ClientError):
    """Wrong verb; the reply carries `Allow`."""

    status = 405
    code = "method-not-allowed"


class RequestTimeout(ClientError):
    """The request did not arrive in time; the connection is closed."""

    status = 408
    code = "request-timeout"


class URITooLong(ClientError):
    """The request target is over the limit; the connection is closed."""

    status = 414
    code = "uri-too-long"


class HeadersTooLarge(ClientError):
    """The headers are over the limit; the connection is closed."""

    status = 431
    code = "headers-too-large"


class Conflict(ClientError):
    """The request contradicts the present state."""

    status = 409
    code = "conflict"


class PayloadTooLarge(ClientError):
    """The body, also after inflating, is over the limit; the connection is closed."""

    status = 413
    code = "payload-too-large"


class UnsupportedEncoding(ClientError):
    """A content coding other than gzip or deflate, or a chain of codings."""

    status = 415
    code = "unsupported-encoding"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Accept-Encoding": "gzip, deflate"})


class LoadRejected(ClientError):
    """A version was refused because of its files; repeated on every call until the files change."""

    code = "load-failed"


class NotOffered(HeadgateError):
    """A part of the protocol that Headgate leaves out on purpose."""

    status = 501
    code = "not-offered"


class Overload(HeadgateError):
    """The request is fine but cannot be taken now."""

    status = 503
    code = "overload"


class QueueFull(Overload):
    """Too much is waiting for this model or for this server."""

    status = 429
    code = "queue-full"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after_s)})


class QuotaExceeded(QueueFull):
    """The caller has used up its own share."""

    code = "quota-exceeded"


class NotReady(Overload):
    """The version is loading, draining or failed; `Retry-After` says when to ask again."""

    code = "not-ready"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after_s)})


class LoadUnavailable(NotReady):
    """A version could not be tried for want of memory or time; it will be tried again."""

    code = "load-failed"


class DeadlineExceeded(Overload):
    """The request's deadline passed before its answer was there."""

    status = 504
    code = "deadline-exceeded"


class ServerError(HeadgateError):
    """A defect on our side: the client gets the request id, the log gets the rest."""


class ModelFailed(ServerError):
    """The model itself raised while running."""

    code = "model-failed"


class SettingError(HeadgateError):
    """A setting is wrong; one line names the setting and the value."""

    code = "bad-setting"
