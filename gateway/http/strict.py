"""What RFC 9110 and 9112 forbid and the parser lets through. Two readers of one request must never disagree about it.

The parser refuses bad characters, line ends, lengths and chunks by itself. It takes a request without a version, any
Host, any transfer coding before `chunked`, and any form of target; these are looked at here.
"""

from __future__ import annotations

import re

from gateway.errors import InvalidRequest

_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)(/[^#]*|\?[^#]*|)", re.IGNORECASE)
_ORIGIN = re.compile(rb"/[^#]*")


def check(version: str, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The target in origin form (``*`` for OPTIONS). Names in `headers` are in lower case. Raises InvalidRequest."""
    if version not in ("1.1", "1.0"):
        raise InvalidRequest("the version of HTTP must be 1.0 or 1.1", field="version")
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                raise InvalidRequest("header Host must be a name or an address, and a port or none", field="Host")
        elif name == b"transfer-encoding" and (version == "1.0" or value.strip(b" \t").lower() != b"chunked"):
            raise InvalidRequest("the only transfer coding is chunked, once, in HTTP/1.1", field="Transfer-Encoding")
    if hosts != 1 and (hosts or version == "1.1"):
        raise InvalidRequest(f"header Host stands {hosts} times, it must stand once", field="Host")
    if _ORIGIN.fullmatch(target) or (target == b"*" and method == b"OPTIONS"):
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or not _HOST.fullmatch(absolute[1]):
        raise InvalidRequest("the request target must be a path or an http URL", field="target")
    path = absolute[2]
    return path if path[:1] == b"/" else b"/" + path


def without_upgrade(method: bytes, target: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The head of a request again, without its offer to change the protocol."""
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode())]
    lines += [b"%b: %b" % header for header in headers if header[0] != b"upgrade"]
    return b"\r\n".join([*lines, b"", b""])
