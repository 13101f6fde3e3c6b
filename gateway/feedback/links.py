"""Links: a signed, scoped, expiring permission to answer one question about one prediction, as a short text.

``KEY.PAYLOAD.MAC``: the id of a key, the Link, and HMAC-SHA256 over both, in base64url. The holder can answer that one
question as that one reviewer, as often as they change their mind, and nothing else. The keys lie in a file of the data
folder that only its owner may read; the last one signs, and a link whose key was taken out is void.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

import msgspec

from gateway.errors import ClientError, Forbidden
from gateway.feedback.rules import Value
from gateway.models import durable

MAX_TOKEN = 4096
_PURPOSE = b"headgate feedback link 1\0"


class Link(msgspec.Struct, frozen=True, array_like=True):
    """What a link permits: one value (of `values`, where there are any) for a name of a prediction, until `expires_s`.

    `id` tells the answers through this link from others; `source` is the id of the reviewer, empty if not known.
    """

    id: str
    model: str
    prediction_id: str
    row: int | None
    name: str
    values: tuple[Value, ...]
    expires_s: int
    source: str = ""


class BadLink(Forbidden):
    """The link was not made here, was changed, or its key was withdrawn."""

    def __init__(self) -> None:
        super().__init__("this feedback link is not valid")


class ExpiredLink(ClientError):
    """The link was good once."""

    status = 410
    code = "link-expired"

    def __init__(self, message: str = "this feedback link has expired") -> None:
        super().__init__(message)


class Key(msgspec.Struct, frozen=True):
    """A secret that signs links; `id` stands in every link that it signed."""

    id: str
    secret: str

    def __repr__(self) -> str:
        return f"Key({self.id!r})"


class LinkKeys:
    """The keys in `path`, made where there are none. Read anew for each use: the file decides, for all workers."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def sign(self, link: Link) -> str:
        """The token of a link. Raises OSError, ValueError."""
        key = (self._read() or self._create())[-1]
        head = f"{key.id}.{_encode(msgspec.msgpack.encode(link))}"
        return f"{head}.{_encode(_mac(key, head))}"

    def verify(self, token: str, now_s: int) -> Link:
        """The link of a token. Raises BadLink, ExpiredLink, OSError, ValueError."""
        head, _, mac = token.rpartition(".")
        name, _, payload = head.partition(".")
        if len(token) > MAX_TOKEN or not token.isascii() or not payload:
            raise BadLink
        key = next((each for each in self._read() if each.id == name), None)
        if key is None or not hmac.compare_digest(_encode(_mac(key, head)), mac):
            raise BadLink
        link = msgspec.msgpack.decode(_decode(payload), type=Link)
        if now_s >= link.expires_s:
            raise ExpiredLink
        return link

    def _read(self) -> list[Key]:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return []
        try:
            return msgspec.json.decode(content, type=list[Key])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{self._path.name} is damaged: {error}") from None

    def _create(self) -> list[Key]:
        """Make the first key, on disk before it is used. Of several processes one wins, and all use its key."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f".{self._path.name}-{secrets.token_hex(4)}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.encode([Key(secrets.token_hex(4), secrets.token_hex(32))]))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(beside, self._path)
        finally:
            beside.unlink()
        durable.sync(self._path.parent)
        return self._read()


def new_link_id() -> str:
    """An id that nobody guesses."""
    return secrets.token_urlsafe(12)


def _mac(key: Key, head: str) -> bytes:
    return hmac.digest(bytes.fromhex(key.secret), _PURPOSE + head.encode(), hashlib.sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise BadLink from None
