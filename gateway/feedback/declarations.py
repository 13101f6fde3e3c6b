"""Declarations: the feedback names of every model, as the `model.toml` files have them now.

They are read from the model folder and not from what is loaded: labels come weeks after the predictions, also for
models of which no version is loaded any more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gateway.errors import NotReady
from gateway.feedback.rules import FeedbackRule
from gateway.models.config import parse
from gateway.models.manifest import check_model_name

log = logging.getLogger("headgate.feedback")

REFRESH_S = 1.0
"""For how long what was read is taken as current."""

MAX_BYTES = 1 << 20

Stamp = tuple[int, int, int]


class Declarations:
    """Not thread-safe: one thread asks. A file that cannot be read leaves what it said before in force."""

    def __init__(self, models: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._models = models
        self._monotonic = monotonic
        self._read_at = -REFRESH_S
        self._stamps: dict[str, Stamp] = {}
        self._rules: dict[str, dict[str, FeedbackRule]] = {}
        self._broken: dict[str, str] = {}

    def of(self, model: str) -> Mapping[str, FeedbackRule]:
        """The names of one model; empty where it declares none or is not in the folder. Raises NotReady."""
        self._refresh()
        if model in self._broken and model not in self._rules:
            raise NotReady(f"the declarations of model {model!r} cannot be read: {self._broken[model]}")
        return self._rules.get(model, {})

    def declaring(self, name: str) -> dict[str, FeedbackRule]:
        """The models that declare a name, with their declarations of it."""
        self._refresh()
        return {model: rules[name] for model, rules in sorted(self._rules.items()) if name in rules}

    def find(self, model: str, name: str) -> dict[str, FeedbackRule]:
        """The declarations of a name: of one model, or (model empty) of every model that has it.

        Raises NotReady where there are none, but declarations that cannot be read may be some.
        """
        if not model:
            found = self.declaring(name)
            if not found and (unread := sorted(self._broken.keys() - self._rules.keys())):
                raise NotReady(f"the declarations of model {unread[0]!r} cannot be read: {self._broken[unread[0]]}")
            return found
        rule = self.of(model).get(name)
        return {} if rule is None else {model: rule}

    def _refresh(self) -> None:
        now = self._monotonic()
        if now - self._read_at < REFRESH_S:
            return
        self._read_at = now
        try:
            names = [path.name for path in self._models.iterdir() if check_model_name(path.name) is None]
        except OSError as error:
            log.warning("models unreadable", extra={"event": "models-unreadable", "reason": error.strerror})
            return
        for gone in self._stamps.keys() - names:
            self._forget(gone)
        for name in names:
            self._look(name)

    def _look(self, model: str) -> None:
        """Read a file again if it is another one than before."""
        path = self._models / model / "model.toml"
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if self._stamps.get(model) == stamp:
                return
            self._stamps[model] = stamp
            if status.st_size > MAX_BYTES:
                raise ValueError(f"model.toml is {status.st_size} bytes, at most {MAX_BYTES} are read")
            rules = dict(parse(path.read_bytes()).feedback)
        except (FileNotFoundError, NotADirectoryError):
            self._forget(model)
        except (ValueError, OSError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"model.toml: {error.strerror}"
            self._broken[model] = reason
            facts = {"event": "declarations-unreadable", "model": model, "reason": reason}
            log.warning("declarations unreadable", extra=facts)
        else:
            self._rules[model] = rules
            self._broken.pop(model, None)

    def _forget(self, model: str) -> None:
        for table in (self._stamps, self._rules, self._broken):
            table.pop(model, None)
