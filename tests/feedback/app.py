"""The application without a socket and without models: declarations in a folder, predictions in a dictionary."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, NamedTuple, cast

from starlette.applications import Starlette

from gateway import app as application
from gateway import state
from gateway.feedback import log as logs
from gateway.feedback.commit import Committer
from gateway.feedback.event import Event
from gateway.feedback.links import LinkKeys
from gateway.feedback.log import Log
from gateway.feedback.service import Feedback
from gateway.journal import ids
from gateway.journal.reader import Found
from gateway.models.table import ServingTable
from gateway.settings import Settings
from gateway.state import RepositoryAPI
from gateway.telemetry.store import CounterStore

NOW_NS = 1_790_000_000_000_000_000
DAY_NS = 86_400_000_000_000

FLIGHTS = """
[feedback.late]
type = "boolean"
join_window = "30d"
question = "Was your flight late?"
[feedback.delay]
type = "number"
min = -60
entity = "flight"
[feedback.stars]
type = "integer"
kind = "feedback"
min = 1
max = 5
[feedback.reason]
type = "category"
values = ["weather", "crew", 7, "<b>&\\"strange\\"</b>"]
[feedback.comment]
type = "text"
kind = "feedback"
max = 200
"""

TRAINS = """
[feedback.late]
type = "boolean"
[feedback.stars]
type = "integer"
min = 1
max = 10
[feedback.gauge]
type = "integer"
"""


class Reply(NamedTuple):
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Predictions:
    """A Finder over a dictionary; `broken` is raised instead."""

    def __init__(self) -> None:
        self.known: dict[str, Found] = {}
        self.broken: Exception | None = None

    def add(self, model: str = "flights", *, age_ns: int = 0, span: int = 1) -> str:
        """A prediction that was made `age_ns` ago; returns its id."""
        name = ids.new_id()
        self.known[name] = Found(model, 1, NOW_NS - age_ns, 200, 0, span, "segment")
        return name

    def find(self, prediction_id: str) -> Found | None:
        """See Finder."""
        if self.broken is not None:
            raise self.broken
        return self.known.get(prediction_id)


class Desk:
    """The application over a scratch folder. `now_ns` is what its clock says."""

    def __init__(self, scratch: Path, *, keys: int = 1000, **settings: Any) -> None:
        self.models = scratch / "models"
        self.folder = scratch / "data" / "feedback"
        self.declare("flights", FLIGHTS)
        self.declare("trains", TRAINS)
        self.now_ns = NOW_NS
        self.predictions = Predictions()
        self.counters = CounterStore()
        self.settings = Settings(models=self.models, data=scratch / "data", **settings)
        gateway = state.assemble(
            self.settings,
            ServingTable(),
            cast(RepositoryAPI, None),
            lambda: True,
            self.counters,
            self.counters.snapshot,
        )
        self.log = Log(self.folder, 1 << 20, 3600)
        self.committer = Committer(self.folder, self.log, keys, "boot", lambda: self.now_ns)
        self.feedback = gateway.feedback = Feedback(
            self.models,
            self.predictions,
            self.committer,
            LinkKeys(self.folder / "link-keys.json"),
            self.counters,
            lambda: self.now_ns,
        )
        self.app: Starlette = application.build(gateway)

    def declare(self, model: str, text: str) -> None:
        """Write a model.toml."""
        (self.models / model).mkdir(parents=True, exist_ok=True)
        (self.models / model / "model.toml").write_text(text)

    async def request(
        self, method: str, path: str, body: bytes | object = b"", headers: dict[str, str] | None = None
    ) -> Reply:
        """One request through every middleware; a body that is no bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent: list[dict[str, Any]] = []
        pieces = [{"type": "http.request", "body": content, "more_body": False}]

        async def receive() -> dict[str, Any]:
            return pieces.pop(0) if pieces else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        path, _, query = path.partition("?")
        names = {"host": "models.test", "content-length": str(len(content)), **(headers or {})}
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in names.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        await self.app(scope, receive, send)
        start = sent[0]
        found = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        return Reply(start["status"], found, b"".join(each.get("body", b"") for each in sent[1:]))

    async def post(self, document: object, key: str = "") -> Reply:
        """``POST /v1/feedback``."""
        return await self.request("POST", "/v1/feedback", document, {"idempotency-key": key} if key else None)

    def events(self) -> list[Event]:
        """Everything that is on disk, in the order in which it was received."""
        found: list[Event] = []
        for path in logs.files(self.folder):
            found += [item[1] for item in logs.read(path)]  # type: ignore[misc]
        return sorted(found, key=lambda event: event.received_ns)

    def counted(self) -> dict[tuple[str, ...], int]:
        """Counters of feedback by (model, name, status)."""
        named = self.counters.snapshot().named
        return {name[1:]: count for name, count in named.items() if name[0] == "feedback" and count}


UNKNOWN = "00000000-0000-0000-0000-000000000000"


def late(prediction: str, **more: Any) -> dict[str, Any]:
    """An event of a name that both models declare."""
    return {"prediction_id": prediction, "name": "late", "value": True, **more}


def post(desk: Desk, document: object, key: str = "") -> Reply:
    """``POST /v1/feedback`` on a loop of its own."""
    return asyncio.run(desk.post(document, key))
