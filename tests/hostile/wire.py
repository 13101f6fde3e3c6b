"""Raw HTTP for tests: requests as bytes, replies read strictly, so that a reply out of place cannot go unseen."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any, NamedTuple

BODY = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}'
CORPUS = Path(__file__).parents[1] / "corpus" / "raw_http"

_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [ -~]*")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\t -~\x80-\xff]*)")


class Case(NamedTuple):
    """One file of the corpus: statuses of the replies in order, and whether the connection ends behind them."""

    statuses: list[int]
    closes: bool
    request: bytes
    rule: str
    source: str


def read_case(path: Path) -> Case:
    r"""Read a file: `rule`, `source`, `expect`, an empty line, then the request with \r \n \t \\ \xNN for bytes.

    The file's own line ends are not part of the request.
    """
    head, _, text = path.read_text(encoding="ascii").partition("\n\n")
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    *statuses, end = fields["expect"].split()
    assert end in ("open", "close"), path.name
    return Case([int(status) for status in statuses], end == "close", unescape(text), fields["rule"], fields["source"])


def unescape(text: str) -> bytes:
    """The bytes that the text of a file stands for."""

    def byte(found: re.Match[bytes]) -> bytes:
        code = found[1]
        return (
            bytes([int(code[1:], 16)]) if len(code) > 1 else {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}[code]
        )

    return re.sub(rb"\\(x[0-9a-f]{2}|.)", byte, text.replace("\n", "").encode("ascii"))


class Reply(NamedTuple):
    """One reply, whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Connection:
    """A connection on which every byte is the test's own. Reading past the deadline of the socket raises."""

    def __init__(self, address: str, timeout_s: float = 15.0) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout_s)
        self.port = int(self.socket.getsockname()[1])
        self._buffer = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send all of it; False where the server had ended the connection before."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def reply(self) -> Reply | None:
        """The next reply; None where the connection ended, or was reset, instead. Raises where it is no valid reply."""
        head = self._until(b"\r\n\r\n")
        if head is None:
            return None
        status_line, *lines = head.split(b"\r\n")
        status = _STATUS.fullmatch(status_line)
        fields = [_FIELD.fullmatch(line) for line in lines]
        assert status is not None, head
        assert all(fields), head
        headers = {field[1].decode().lower(): field[2].decode("latin-1") for field in fields if field is not None}
        assert len(headers) == len(lines), f"a header stands twice: {head!r}"
        code = int(status[1])
        if code < 200 or code == 204:
            return Reply(code, headers, b"")
        assert "transfer-encoding" not in headers
        length = int(headers["content-length"])
        while len(self._buffer) < length:
            assert self._more(), f"the reply is cut: {head!r}"
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Reply(code, headers, body)

    def ended(self) -> bool:
        """Wait for the end of the connection; False where bytes come instead."""
        return not self._buffer and not self._more()

    def _until(self, mark: bytes) -> bytes | None:
        while mark not in self._buffer:
            if not self._more():
                assert not self._buffer, f"cut inside of a reply: {self._buffer!r}"
                return None
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _more(self) -> bool:
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            return False
        self._buffer += data
        return bool(data)


def infer_request(body: bytes = BODY, model: str = "echo", headers: bytes = b"") -> bytes:
    """A well-formed inference request."""
    head = b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: gate.example\r\n%bContent-Length: %d\r\n\r\n"
    return head % (model.encode(), headers, len(body)) + body


def get_request(path: str = "/v2/health/live", headers: bytes = b"") -> bytes:
    """A well-formed GET request."""
    return b"GET %b HTTP/1.1\r\nHost: gate.example\r\n%b\r\n" % (path.encode(), headers)
