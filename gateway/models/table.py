"""The serving table: which versions answer now. Published whole, read without locks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.errors import NotReady, UnknownModel, UnknownVersion
from gateway.models.manifest import parse_version
from gateway.models.servable import Servable


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """The state of one version in the words of the repository index; `reason` says why it is not READY."""

    version: int
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ModelTable:
    """One model: its ready versions, its aliases, and the state of every version that is known.

    `error` is what is wrong with the model as a whole, such as a `model.toml` that cannot be read.
    """

    name: str
    ready: Mapping[int, Servable] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)
    statuses: tuple[VersionStatus, ...] = ()
    error: str = ""

    def default(self) -> Servable | None:
        """What answers without a version: the champion where that alias exists, else the highest ready version.

        A champion that is not ready is not replaced by another version: nobody approved that one.
        """
        champion = self.aliases.get("champion")
        if champion is not None:
            return self.ready.get(champion)
        return self.ready[max(self.ready)] if self.ready else None

    def status(self, version: int) -> VersionStatus | None:
        """The state of one version, None where it is not known."""
        return next((status for status in self.statuses if status.version == version), None)


STARTING = "the server is starting: it has not read its model folder yet"


class ServingTable:
    """All models that this process knows. `publish` replaces everything at once.

    Before it was first called nothing is known of any model, so none is called unknown.
    """

    def __init__(self) -> None:
        self.models: Mapping[str, ModelTable] = {}
        self._is_published = False
        self._found: dict[tuple[str, str | None], Servable] = {}

    @property
    def is_everywhere(self) -> bool:
        """True when every process that serves goes by what was published last."""
        return True

    def publish(self, models: Mapping[str, ModelTable]) -> None:
        """Make `models` what the next request sees."""
        self.models = models
        self._is_published = True
        self._found.clear()

    def model(self, name: str) -> ModelTable:
        """Raises UnknownModel, or NotReady while it is not known which models there are."""
        found = self.models.get(name)
        if found is None:
            raise UnknownModel(name) if self._is_published else NotReady(STARTING)
        return found

    def knows(self, name: str, slot: str | None) -> bool:
        """True for a model, and a version or alias of it, that is in the table."""
        model = self.models.get(name)
        if model is None or slot is None:
            return model is not None
        version = parse_version(slot)
        return slot in model.aliases if version is None else model.status(version) is not None

    def serves(self, servable: Servable) -> bool:
        """True while this very incarnation answers requests."""
        model = self.models.get(servable.model)
        return model is not None and model.ready.get(servable.version) is servable

    def find(self, name: str, slot: str | None) -> Servable:
        """What answers for a model and a version slot: a number, an alias, or None.

        Raises UnknownModel, UnknownVersion, or NotReady where the version is known but does not serve.
        """
        found = self._found.get((name, slot))
        if found is None:
            found = self._found[name, slot] = self._find(name, slot)
        return found

    def _find(self, name: str, slot: str | None) -> Servable:
        model = self.model(name)
        if slot is None:
            servable = model.default()
            if servable is None:
                raise NotReady(f"model {name!r} is not at ready state: {_why(model)}")
            return servable
        version = parse_version(slot) or model.aliases.get(slot)
        status = model.status(version) if version is not None else None
        if version is None or status is None:
            raise UnknownVersion(name, slot[:64])
        servable = model.ready.get(version)
        if servable is None:
            reason = f": {status.reason}" if status.reason else ""
            raise NotReady(f"model {name!r} version {version} is not at ready state ({status.state}{reason})")
        return servable


def _why(model: ModelTable) -> str:
    if model.error:
        return model.error
    known = [
        f"version {status.version} is {status.state}" + (f": {status.reason}" if status.reason else "")
        for status in model.statuses
        if model.aliases.get("champion") in (None, status.version)
    ]
    return "; ".join(known[-3:]) or "it has no version"
