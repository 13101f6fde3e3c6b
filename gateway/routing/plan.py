"""The serving plan: what every worker has loaded and what answers, in one file that is replaced whole.

A change takes two plans: the first one lists a version with `serves` False, so that every worker loads it; when all
have, the second one lets it answer. Workers follow the last plan, whoever wrote it and whether or not that one lives.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from gateway.models.config import ModelConfig
from gateway.models.manifest import Lineage
from gateway.models.quarantine import Report
from gateway.models.source import VersionFiles


class PlannedVersion(msgspec.Struct, frozen=True):
    """One version. `incarnation` is a new word each time it is loaded; `serves` False: load it, but do not answer.

    `suspect`: it has crashed workers, so they note the digests of what they run; `refused` are those of rows that were
    in the run of several crashes.
    """

    incarnation: str
    version: int
    folder: str
    fingerprint: str
    verified: bool
    config: ModelConfig
    report: Report
    lineage: Lineage
    serves: bool = True
    suspect: bool = False
    refused: tuple[int, ...] = ()

    def files(self) -> VersionFiles:
        """Its files as the source saw them."""
        return VersionFiles(self.version, Path(self.folder), self.fingerprint, True, self.verified)


class PlannedStatus(msgspec.Struct, frozen=True, array_like=True):
    """The state of a version in the words of the repository index."""

    version: int
    state: str
    reason: str


class PlannedModel(msgspec.Struct, frozen=True):
    """One model: its versions, aliases and what is known of each version."""

    versions: list[PlannedVersion]
    aliases: dict[str, int]
    statuses: list[PlannedStatus]
    error: str = ""


class Plan(msgspec.Struct, frozen=True):
    """`settled`: every wanted version is ready or has failed, so that readiness can be told."""

    models: dict[str, PlannedModel] = {}
    settled: bool = False
    generation: int = 0


def read(path: Path) -> Plan:
    """The plan in a file; an empty one of generation 0 where there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except FileNotFoundError:
        return Plan()


def write(path: Path, document: msgspec.Struct) -> None:
    """Replace a file by a document; a reader sees the old one or the new one whole."""
    beside = path.with_suffix(f".{os.getpid()}.new")
    beside.write_bytes(msgspec.json.encode(document))
    beside.replace(path)
