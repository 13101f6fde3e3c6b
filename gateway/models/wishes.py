"""What the operator asked for at run time: moved aliases, unloaded and pinned versions. Kept over a restart."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gateway.models.policy import Wishes


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
    """All wishes, in one file that is replaced atomically. `path` None: they live as long as the process."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._models: dict[str, ModelWishes] = {}
        self.damaged = ""
        if path is not None and path.exists():
            try:
                self._models = msgspec.json.decode(path.read_bytes(), type=dict[str, ModelWishes])
            except (msgspec.DecodeError, OSError) as error:
                aside = path.with_suffix(".bad")
                path.replace(aside)
                self.damaged = f"{path.name} could not be read ({error}); it was set aside as {aside.name}"

    def get(self, model: str) -> ModelWishes:
        """The wishes for a model, none where nothing was asked."""
        return self._models.get(model, ModelWishes())

    def put(self, model: str, wishes: ModelWishes) -> None:
        """Remember wishes; on disk before this returns."""
        self._models[model] = wishes
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".new")
        with open(beside, "wb") as file:
            file.write(msgspec.json.encode(self._models))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
