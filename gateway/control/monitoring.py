"""Monitoring: the monitors of a server, put together for the control process, and what its admin port tells of them."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import InvalidRequest, LoadRejected, NotFound, UnknownVersion
from gateway.http.messages import json_response, read_document
from gateway.ledger import dialect
from gateway.ledger.reading import Ledger, LedgerUnavailable
from gateway.models.config import ModelConfig, parse
from gateway.models.manifest import MANIFEST, parse_version, read_manifest, verified_file
from gateway.settings import Settings
from monitors.baseline.document import FILE, Baseline
from monitors.report import plain, rows_report
from monitors.rule import Rule
from monitors.service import Service, Subject
from monitors.task import Task
from monitors.watcher import Watcher
from monitors.webhook import SECRET_PREFIX, Webhook, cloud_event, post, secret_of

log = logging.getLogger("headgate.monitoring")

MAX_BASELINE_BYTES = 512 << 20


class Monitoring:
    """The monitors, the webhook that their alarms go to, and the routes of the admin port."""

    def __init__(self, settings: Settings) -> None:
        """Raises ValueError where the webhook's URL or secret cannot be used."""
        self._ledger = Ledger(dialect.location(settings.data))
        self.service = Service(
            settings.data,
            partial(subject, settings.models),
            self._notify,
            ledger=self._ledger,
            mark=partial(mark, settings.models),
            outbox=bool(settings.alarm_webhook),
        )
        self.webhook = None
        if settings.alarm_webhook:
            self.webhook = Webhook(
                post(settings.alarm_webhook, timeout_s=10.0),
                _secrets(settings.data),
                on_delivered=self.service.delivered,
            )

    def start(self) -> None:
        """Begin to read the journal."""
        if self.webhook is not None:
            self.webhook.start()
        self.service.start()

    def stop(self) -> None:
        """End, and remember where it was."""
        self.service.stop()
        if self.webhook is not None:
            self.webhook.close()

    def _notify(self, alarm: Any) -> None:
        if self.webhook is not None:
            subject = f"{alarm.model}/{alarm.version}"
            event = cloud_event(
                alarm.id, "headgate.alarm", "headgate", subject, alarm.raised_ns, plain(alarm.explain())
            )
            self.webhook.send(event)

    # -- the admin port

    def routes(self) -> list[Route]:
        """What the admin port answers."""
        return [
            Route("/api/monitors", self._list),
            Route("/api/monitors/{model}/{version}", self._one),
            Route("/api/alarms", self._alarms),
            Route("/api/webhook", self._sent),
            Route("/api/alarms/{alarm}/acknowledge", self._acknowledge, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        """``GET /api/monitors``: how far each watcher is, and its evidence."""
        found = await asyncio.to_thread(self.service.read, lambda watcher: watcher.value())
        return json_response(plain([_named(key, value) for key, value in found.items()]))

    async def _one(self, request: Request) -> Response:
        """``GET /api/monitors/{model}/{version}``: every statistic of every feature of the window."""
        version = parse_version(request.path_params["version"])
        key = (request.path_params["model"], version or 0)
        watcher = self.service.watchers.get(key)
        if watcher is None:
            raise UnknownVersion(key[0], request.path_params["version"])
        found = await asyncio.to_thread(self.service.look_at, watcher, _table)
        table = dict(_named(key, found))
        if watcher.performance is not None:
            label = watcher.performance.task.label
            table["performance"] |= await asyncio.to_thread(self._coverage, key, label)
        return json_response(plain(table))

    def _coverage(self, key: tuple[str, int], label: str) -> dict[str, Any]:
        """How many predictions have a label by which age, as the ledger says."""
        try:
            curve = self._ledger.maturity(*key, label, self.service.now_ns())
        except LedgerUnavailable as error:
            return {"coverage": [], "coverage_unknown": str(error)}
        return {"coverage": [{**each._asdict(), "ratio": each.ratio} for each in curve]}

    async def _alarms(self, request: Request) -> Response:
        """``GET /api/alarms``: every alarm that is remembered, with its explanation."""
        found = await asyncio.to_thread(self.service.read, _alarms_of)
        return json_response(
            plain([alarm for alarms in found.values() if isinstance(alarms, list) for alarm in alarms])
        )

    async def _sent(self, request: Request) -> Response:
        """``GET /api/webhook``: what became of the alarms that were sent."""
        return json_response({} if self.webhook is None else self.webhook.value())

    async def _acknowledge(self, request: Request) -> Response:
        """``POST /api/alarms/{id}/acknowledge``: ``{"by", "note", "quiet_s"}``; the watch starts anew."""
        document = await read_document(request)
        by, note, quiet_s = document.get("by", ""), document.get("note", ""), document.get("quiet_s", 0)
        if not isinstance(by, str) or not by or not isinstance(note, str):
            raise InvalidRequest("by must be a name and note a text", field="by")
        if not isinstance(quiet_s, int | float) or isinstance(quiet_s, bool) or not 0 <= quiet_s <= 3.2e7:
            raise InvalidRequest("quiet_s must be a number of seconds, at most a year", field="quiet_s")
        name = request.path_params["alarm"]
        alarm = await asyncio.to_thread(self.service.acknowledge, name, by, note, quiet_s)
        if alarm is None:
            raise NotFound(f"there is no alarm {name[:64]!r}")
        return json_response(plain(alarm.explain()))


def subject(models: Path, model: str, version: int) -> Subject:
    """How a version in a folder of models is watched, and against what."""
    folder = models / model
    try:
        config = parse((folder / "model.toml").read_bytes())
    except (OSError, ValueError):
        # A broken file is the lifecycle's to complain about; the rows are counted meanwhile.
        config = ModelConfig()
    rule = {name: value for name, value in asdict(config.monitor).items() if name != "performance"}
    return Subject(Rule(**rule), _baseline(folder / str(version), model, version), Task.of(config))


def mark(models: Path, model: str, version: int) -> object:
    """What changes when `subject` does; None while the version's folder is gone or its `model.toml` cannot be read."""
    folder = models / model
    try:
        config = parse((folder / "model.toml").read_bytes())
    except FileNotFoundError:
        config = ModelConfig()
    except (OSError, ValueError):
        return None
    home = folder / str(version)
    if not home.is_dir():
        return None
    return config.monitor, Task.of(config), _stamp(home / MANIFEST), _stamp(home / FILE)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from the one that replaced it; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _baseline(folder: Path, model: str, version: int) -> Baseline | None:
    """The baseline of a version; None where it has none, or one that must not be used, which is logged."""
    try:
        if not (folder / MANIFEST).exists():
            return Baseline.load(folder / FILE)
        manifest = read_manifest(folder, model, version)
        if FILE in manifest.files:
            return Baseline.from_bytes(verified_file(folder, FILE, manifest, MAX_BASELINE_BYTES))
        if (folder / FILE).exists():
            raise LoadRejected(f"{FILE} is there, but {MANIFEST} does not list it")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, LoadRejected) as error:
        facts = {"model": model, "version": version, "reason": str(error)}
        log.error("baseline cannot be used", extra={"event": "baseline-failed", **facts})
    return None


def _secrets(data: Path) -> list[bytes]:
    """The secrets that events are signed with; made where there are none."""
    path = data / "webhook-secrets"
    with suppress(FileExistsError), path.open("x") as file:
        path.chmod(0o600)
        file.write(f"{SECRET_PREFIX}{base64.b64encode(secrets.token_bytes(32)).decode()}\n")
    return [secret_of(line.strip()) for line in path.read_text().splitlines() if line.strip()]


def _named(key: tuple[str, int], value: object) -> dict[str, Any]:
    assert isinstance(value, Mapping)
    return {"model": key[0], "version": key[1], **value}


def _alarms_of(watcher: Watcher) -> list[dict[str, Any]]:
    return [alarm.explain() for alarms in watcher.every_alarms for alarm in alarms.all]


def _table(watcher: Watcher) -> dict[str, Any]:
    """Every statistic and rate of the window of a watcher, by feature and of whole rows."""
    found = {**watcher.value(), "operation": watcher.operation_value()}
    if watcher.performance is not None:
        found["performance"] = watcher.performance.value()
    if watcher.baseline is None:
        return found
    return {**found, **rows_report(watcher.baseline, watcher.shown.seen)}
