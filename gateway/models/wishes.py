"""What the operator asked for at run time: moved aliases, unloaded and pinned versions. Kept over a restart."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gateway.errors import NotReady, SettingError
from gateway.models import durable
from gateway.models.policy import Wishes

log = logging.getLogger("headgate.models")


class AliasMove(msgspec.Struct, frozen=True):
    """An alias moved by the API. It holds until `model.toml` declares something else than it did then (`declared`).

    `version` None: the alias was removed.
    """

    version: int | None
    declared: int | None


class ModelWishes(msgspec.Struct, frozen=True):
    """The wishes for one model."""

    aliases: dict[str, AliasMove] = {}
    all_held: bool = False
    held: tuple[int, ...] = ()
    pinned: tuple[int, ...] = ()

    def excludes(self, version: int | None) -> bool:
        """Whether a version, or (None) the whole model, is out by request."""
        if version is None:
            return self.all_held and not self.pinned
        return version in self.held or (self.all_held and version not in self.pinned)

    def policy(self) -> Wishes:
        """The part that the policy reads."""
        return Wishes(self.all_held, frozenset(self.held), frozenset(self.pinned))

    def effective_aliases(self, declared: Mapping[str, int]) -> dict[str, int]:
        """The aliases as they should stand: the later of the two, `model.toml` and the API, wins for each."""
        merged: dict[str, int] = dict(declared)
        for alias, move in self.aliases.items():
            if move.declared != declared.get(alias):
                continue
            if move.version is None:
                merged.pop(alias, None)
            else:
                merged[alias] = move.version
        return merged


class WishBook:
    """All wishes, in one file that is replaced atomically. `path` None: they live as long as the process.

    A file that cannot be understood is set aside and logged: the model folder alone then decides.
    Raises SettingError where the file cannot be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._models: dict[str, ModelWishes] = {}
        if path is not None and path.exists():
            try:
                self._models = msgspec.json.decode(path.read_bytes(), type=dict[str, ModelWishes])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                aside = path.with_suffix(".bad")
                path.replace(aside)
                reason = f"{path.name} is damaged ({error}); it was set aside as {aside.name}"
                log.error("wishes lost", extra={"event": "wishes-lost", "reason": reason})
            except OSError as error:
                raise SettingError(f"data: {path.name} in it cannot be read ({error.strerror})") from None

    def get(self, model: str) -> ModelWishes:
        """The wishes for a model, none where nothing was asked."""
        return self._models.get(model, ModelWishes())

    def put(self, model: str, wishes: ModelWishes) -> None:
        """Remember wishes, on disk before this returns. Raises NotReady where that fails; then nothing changed."""
        models = {**self._models, model: wishes}
        if self._path is not None:
            try:
                self._write(self._path, msgspec.json.encode(models))
            except OSError as error:
                raise NotReady(f"the change could not be kept on disk ({error.strerror})", retry_after_s=10) from None
        self._models = models

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        durable.write(beside, content)
        beside.replace(path)
        durable.sync(path.parent)
