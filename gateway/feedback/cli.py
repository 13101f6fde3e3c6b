"""`headgate feedback`: sends feedback to a server, one event or a file of them, and asks it for links."""

from __future__ import annotations

import argparse
import csv
import hashlib
import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gateway.errors import HeadgateError

URL = "http://127.0.0.1:8080"
TIMEOUT_S = 60
BATCH_BYTES = 256 << 10
TRIES = 6
"""How often a batch is sent while the server is busy; the pauses are those that it asks for, at most 10 s each."""

MAX_SHOWN = 20
"""Refused lines that are printed; the others are counted."""

_OVERLOAD = (429, 503)
_SOURCE = {"source_id": "id", "source_type": "type"}


Reader = Callable[[str], object]
"""Makes a value of a text."""


class SendFailed(HeadgateError):
    """The server did not take what was sent."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Give `headgate` its command `feedback`."""
    feedback = commands.add_parser("feedback", help="send feedback, and make feedback links")
    verbs = feedback.add_subparsers(title="commands", required=True, metavar="COMMAND")
    put = verbs.add_parser(
        "put",
        help="send one event, or a file of them",
        description="Send one feedback event: NAME VALUE and one address. Or send a file: .jsonl as for "
        "/v1/feedback:batch, or .csv whose columns are the members of an event (source_id and source_type for the "
        "source). Sending the same file again records nothing twice.",
    )
    put.add_argument("name", nargs="?", help="a name that model.toml declares")
    put.add_argument("value", nargs="?", help="true, false, a number, or a text")
    put.add_argument(
        "--text", action="store_true", help="values are texts, also such as 5 and true; of a CSV file, too"
    )
    put.add_argument("--file", type=Path, help="JSON lines or CSV")
    put.add_argument("--prediction", dest="prediction_id", help="prediction id, or id#row")
    put.add_argument("--request-id", help="id that the client gave the request")
    put.add_argument("--entity", help="value of the declared entity; needs --event-time")
    put.add_argument("--event-time", help="such as 2026-09-17T10:00:00Z")
    put.add_argument("--row", type=int, help="row of the request, from 0")
    put.add_argument("--model", help="needed where several models declare the name")
    put.add_argument("--source-id", help="who says it")
    put.add_argument("--source-type", choices=("HUMAN", "SYSTEM", "MODEL"), help="default: SYSTEM")
    put.add_argument("--observed-at", help="when it was found out, such as 2026-09-17T10:00:00Z")
    put.add_argument("--rationale", help="why")
    put.add_argument("--supersedes", help="feedback_id of the event that this one takes the place of")
    put.add_argument("--key", dest="idempotency_key", help="idempotency key")
    put.add_argument("--url", default=URL, help=f"address of the server (default: {URL})")
    put.set_defaults(run=_put)
    link = verbs.add_parser("link", help="make a link under which one person can answer one question")
    link.add_argument("prediction", help="prediction id, or id#row")
    link.add_argument("name", help="a name that model.toml declares")
    link.add_argument("--value", action="append", help="an answer that may be given; repeatable")
    link.add_argument("--text", action="store_true", help="answers are texts, also such as 5 and true")
    link.add_argument("--expires-in", default="7d", help="such as 12h or 7d (default: 7d)")
    link.add_argument("--source-id", help="the reviewer, as the events will name them")
    link.add_argument("--model", help="needed where the prediction is not found")
    link.add_argument("--url", default=URL, help=f"address of the server (default: {URL})")
    link.add_argument("--json", action="store_true", help="print the whole answer")
    link.set_defaults(run=_link)


def _value(text: str) -> object:
    """A value on the command line or in a CSV file: JSON where it is a boolean, number or string, else a text.

    True and False are booleans too, as pandas writes them.
    """
    try:
        found = json.loads(text.lower() if text in ("True", "False") else text, parse_constant=_no_number)
    except ValueError:
        return text
    return found if isinstance(found, bool | int | float | str) else text


def _reader(args: argparse.Namespace) -> Reader:
    return str if args.text else _value


def _no_number(word: str) -> None:
    """NaN and Infinity are words, not JSON."""
    raise ValueError(word)


def _put(args: argparse.Namespace) -> int:
    if args.file is not None:
        if args.name is not None:
            raise SendFailed("give either --file, or NAME and VALUE")
        return _send_file(args.file, args.url, _reader(args))
    if args.name is None or args.value is None:
        raise SendFailed("give NAME and VALUE, or --file")
    names = ("prediction_id", "request_id", "entity", "event_time", "row", "model", "observed_at", "rationale")
    members = {name: getattr(args, name) for name in (*names, "supersedes", "idempotency_key")}
    source = {"id": args.source_id, "type": args.source_type}
    document = _without_empty(
        {"name": args.name, "value": _reader(args)(args.value), **members, "source": _without_empty(source)}
    )
    _, answer = _send(args.url, "/v1/feedback", json.dumps(document).encode(), "application/json")
    print(f"{answer['status']} {answer['feedback_id']}")
    return 0


def _link(args: argparse.Namespace) -> int:
    values = [_reader(args)(each) for each in args.value or ()]
    wish = {"prediction_id": args.prediction, "name": args.name, "values": values, "model": args.model}
    document = _without_empty({**wish, "expires_in": args.expires_in, "source": args.source_id})
    _, answer = _send(args.url, "/v1/feedback-links", json.dumps(document).encode(), "application/json")
    print(json.dumps(answer, indent=2) if args.json else answer["url"])
    return 0


def _send_file(path: Path, url: str, reader: Reader) -> int:
    """Send every line; the refused ones are named by their numbers in the file. Exit code 1 if there were any."""
    total = path.stat().st_size
    taken = refused = replayed = done = 0
    shown = sys.stderr.isatty()
    for numbers, body, read in _batches(path, reader):
        _, answer = _send(url, "/v1/feedback:batch", body, "application/jsonl", is_batch=True)
        for result in answer["results"]:
            if "error" not in result:
                taken += 1
                replayed += bool(result.get("replayed"))
                continue
            refused += 1
            if refused <= MAX_SHOWN:
                print(f"line {numbers[result['line'] - 1]}: {result['error']}", file=sys.stderr)
        done = read
        if shown:
            print(f"\r{taken + refused} events, {done / max(total, 1):.0%}", end="", file=sys.stderr, flush=True)
    if shown:
        print(file=sys.stderr)
    if refused > MAX_SHOWN:
        print(f"and {refused - MAX_SHOWN} more lines were refused", file=sys.stderr)
    print(f"{taken} taken, of which {replayed} were there already; {refused} refused")
    return 1 if refused else 0


def _batches(path: Path, reader: Reader) -> Iterator[tuple[list[int], bytes, int]]:
    """(line numbers in the file, body, bytes of the file read so far), each body below BATCH_BYTES and a line."""
    numbers: list[int] = []
    lines: list[bytes] = []
    size = read = 0
    for number, line, length in _lines(path, reader):
        read += length
        if lines and size + len(line) > BATCH_BYTES:
            yield numbers, b"\n".join(lines), read - length
            numbers, lines, size = [], [], 0
        numbers.append(number)
        lines.append(line)
        size += len(line) + 1
    if lines:
        yield numbers, b"\n".join(lines), read


def _lines(path: Path, reader: Reader) -> Iterator[tuple[int, bytes, int]]:
    """(number, event as JSON with an idempotency key, bytes in the file) of each line that is not blank."""
    if path.suffix.lower() == ".csv":
        yield from _csv_lines(path, reader)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except ValueError:
                # The server says what is wrong with it.
                yield number, line.strip(), len(line)
                continue
            yield number, _keyed(document) if isinstance(document, dict) else line.strip(), len(line)


def _csv_lines(path: Path, read: Reader) -> Iterator[tuple[int, bytes, int]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                length = sum(len(cell or "") + 1 for cell in row.values() if not isinstance(cell, list))
                if None in row or None in row.values():
                    raise SendFailed(f"{path.name}, line {reader.line_num}: the row is not as long as the head")
                yield reader.line_num, _keyed(_csv_event(row, read)), length
        except (csv.Error, UnicodeDecodeError) as error:
            raise SendFailed(f"{path.name}, line {reader.line_num}: {error}") from None


def _csv_event(row: dict[str, str], read: Reader) -> dict[str, Any]:
    """The event of a row; an empty cell is no member, but an empty value is the empty text."""
    event: dict[str, Any] = {}
    source: dict[str, str] = {}
    for name, cell in row.items():
        if name in _SOURCE:
            source[_SOURCE[name]] = cell
        elif name == "value":
            event[name] = read(cell)
        elif cell:
            event[name] = int(cell) if name == "row" and cell.isdecimal() else cell
    return event | {"source": _without_empty(source)} if any(source.values()) else event


def _keyed(event: dict[str, Any]) -> bytes:
    """An event with a key: what it says itself, else a digest of what it says, so that the same line is one event."""
    said = json.dumps(event, sort_keys=True).encode()
    if not event.get("idempotency_key"):
        event["idempotency_key"] = "line-" + hashlib.blake2b(said, digest_size=16).hexdigest()
    return json.dumps(event).encode()


def _without_empty(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None and value not in ("", {})}


def _send(
    url: str, path: str, body: bytes, media: str, *, is_batch: bool = False, pause: Callable[[float], None] = time.sleep
) -> tuple[int, dict[str, Any]]:
    """POST, and once more where the server is busy. Returns the status and the answer. Raises SendFailed."""
    for attempt in range(TRIES):
        status, headers, answer = _post(url.rstrip("/") + path, body, media)
        if attempt == TRIES - 1 or not (status in _OVERLOAD or _has_busy_lines(answer)):
            break
        pause(min(float(headers.get("retry-after", "1")), 10.0))
    if status >= 300 and not (is_batch and "results" in answer and status not in _OVERLOAD):
        raise SendFailed(str(answer.get("error", f"the server answered {status}")))
    return status, answer


def _has_busy_lines(answer: dict[str, Any]) -> bool:
    """True for the answer to a batch of which some lines came at a bad time; with their keys all may be sent again."""
    return any(result.get("code") in ("queue-full", "not-ready") for result in answer.get("results", []))


def _post(url: str, body: bytes, media: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    try:
        request = urllib.request.Request(url, body, {"content-type": media}, method="POST")
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            return reply.status, _lower(reply.headers), _document(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _lower(error.headers), _document(error.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise SendFailed(f"the server at {url} cannot be reached: {reason}") from None


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    return document if isinstance(document, dict) else {"error": "the answer is not that of Headgate"}
