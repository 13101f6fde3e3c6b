"""Monitoring: the monitors of a server, put together for the control process, and what its admin port tells of them."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import InvalidRequest, NotFound, UnknownVersion
from gateway.http.messages import json_response, read_document
from gateway.ledger import dialect
from gateway.ledger.reading import Ledger, LedgerUnavailable
from gateway.models.config import ModelConfig, parse
from gateway.models.manifest import parse_version
from gateway.settings import Settings
from monitors.baseline.document import FILE, Baseline
from monitors.drift.report import drift
from monitors.quality.report import quality
from monitors.service import Service, Subject
from monitors.task import Task
from monitors.watcher import Rule, Watcher
from monitors.webhook import SECRET_PREFIX, Webhook, cloud_event, post, secret_of

log = logging.getLogger("headgate.monitoring")


class Monitoring:
    """The monitors, the webhook that their alarms go to, and the routes of the admin port."""

    def __init__(self, settings: Settings) -> None:
        """Raises ValueError where the webhook's URL or secret cannot be used."""
        self._models = settings.models
        self._webhook = None
        if settings.alarm_webhook:
            self._webhook = Webhook(post(settings.alarm_webhook, timeout_s=10.0), _secrets(settings.data))
        self._ledger = Ledger(dialect.location(settings.data))
        self.service = Service(settings.data, self._subject, self._notify, ledger=self._ledger)

    def start(self) -> None:
        """Begin to read the journal."""
        if self._webhook is not None:
            self._webhook.start()
        self.service.start()

    def stop(self) -> None:
        """End, and remember where it was."""
        self.service.stop()
        if self._webhook is not None:
            self._webhook.close()

    def _subject(self, model: str, version: int) -> Subject | None:
        folder = self._models / model
        try:
            config = parse((folder / "model.toml").read_bytes())
        except (OSError, ValueError):
            # A broken file is the lifecycle's to complain about; the rows are counted meanwhile.
            config = ModelConfig()
        baseline = None
        try:
            baseline = Baseline.load(folder / str(version) / FILE)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            facts = {"model": model, "version": version, "reason": str(error)}
            log.error("baseline cannot be read", extra={"event": "baseline-failed", **facts})
        rule = {name: value for name, value in asdict(config.monitor).items() if name != "performance"}
        return Subject(Rule(**rule), baseline, Task.of(config))

    def _notify(self, alarm: Any) -> None:
        if self._webhook is not None:
            subject = f"{alarm.model}/{alarm.version}"
            event = cloud_event(
                alarm.id, "headgate.alarm", "headgate", subject, alarm.raised_ns, _plain(alarm.explain())
            )
            self._webhook.send(event)

    # -- the admin port

    def routes(self) -> list[Route]:
        """What the admin port answers."""
        return [
            Route("/api/monitors", self._list),
            Route("/api/monitors/{model}/{version}", self._one),
            Route("/api/alarms", self._alarms),
            Route("/api/alarms/{alarm}/acknowledge", self._acknowledge, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        """``GET /api/monitors``: how far each watcher is, and its evidence."""
        found = await asyncio.to_thread(self.service.read, lambda watcher: watcher.value())
        return json_response(_plain([_named(key, value) for key, value in found.items()]))

    async def _one(self, request: Request) -> Response:
        """``GET /api/monitors/{model}/{version}``: every statistic of every feature of the window."""
        version = parse_version(request.path_params["version"])
        key = (request.path_params["model"], version or 0)
        watcher = self.service.watchers.get(key)
        if watcher is None:
            raise UnknownVersion(key[0], request.path_params["version"])
        found = await asyncio.to_thread(self.service.read, _table)
        table = dict(_named(key, found.get(key, {})))
        if watcher.performance is not None:
            label = watcher.performance.task.label
            table["performance"] |= await asyncio.to_thread(self._coverage, key, label)
        return json_response(_plain(table))

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
            _plain([alarm for alarms in found.values() if isinstance(alarms, list) for alarm in alarms])
        )

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
        return json_response(_plain(alarm.explain()))


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
    """Every statistic and rate of a watcher by feature."""
    found = dict(watcher.value())
    if watcher.performance is not None:
        found["performance"] = watcher.performance.value()
    if watcher.baseline is None:
        return found
    names = watcher.baseline.layout.names
    features: dict[str, dict[str, Any]] = {name: {} for name in names}
    for statistic, result in drift(watcher.baseline.state, watcher.window).items():
        for row, name in enumerate(names):
            fields = ("value", "debiased", "null_mean", "null_sd", "lower", "upper", "p", "n", "m")
            features[name][statistic] = {field: float(getattr(result, field)[row]) for field in fields}
    for kind, rate in quality(watcher.baseline.state, watcher.window).items():
        for row, name in enumerate(names):
            features[name][kind] = {
                field: float(getattr(rate, field)[row]) for field in ("rate", "low", "high", "expected")
            }
    return {**found, "features": features}


def _plain(value: Any) -> Any:
    """The same without numbers that JSON lacks: they become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
