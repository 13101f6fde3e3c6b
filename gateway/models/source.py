"""Source: a folder of models, looked at afresh each time; it remembers nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import LoadRejected
from gateway.models import config as model_config
from gateway.models import policy
from gateway.models.manifest import GOLDEN, MANIFEST, MODEL, check_model_name, parse_version, read_file, read_manifest

CONFIG = "model.toml"
LOOKS = 3
"""How often a version is looked at, at most, when others keep taking its place."""


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """One version as it lies on disk.

    `fingerprint` changes with every change of its files. `complete` is False while files are still arriving or were
    written a moment ago; `waiting` says for what. A damaged manifest is complete: trying it will say what is wrong.
    """

    version: int
    folder: Path
    fingerprint: str
    complete: bool
    verified: bool
    waiting: str = ""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model as it lies on disk; `config` is None and `error` says why where `model.toml` cannot be read.

    `readable` is False where the folder is there but cannot be listed: then nothing is known of its versions.
    """

    name: str
    config: model_config.ModelConfig | None
    error: str = ""
    versions: Mapping[int, VersionFiles] = field(default_factory=dict)
    readable: bool = True


class Source:
    """Declares, at each `scan`, the full set of models and versions under a folder.

    A version with a manifest is complete when every listed file has its size; a bare `model.onnx` when no file of
    the folder has changed for `quiet_s` seconds of `clock`, which tells the time of day as files do.
    What cannot be read is not taken as gone: it is declared as unreadable or incomplete, with the reason.
    """

    def __init__(self, root: Path, quiet_s: float = 2.0, clock: Callable[[], float] = time.time) -> None:
        self.root = root
        self.quiet_s = quiet_s
        self._clock = clock

    def scan(self) -> dict[str, ModelFolder]:
        """Every model folder by name. Raises OSError when the root itself cannot be read: then nothing is known."""
        models: dict[str, ModelFolder] = {}
        with os.scandir(self.root) as entries:
            names = sorted(entry.name for entry in entries if _is_folder(entry))
        for name in names:
            folder = self._model(name)
            if folder is not None:
                models[folder.name] = folder
        return models

    def _model(self, name: str) -> ModelFolder | None:
        """A folder that holds neither a version nor a `model.toml` is none of ours."""
        folder = self.root / name
        try:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if _is_folder(entry) or entry.name == CONFIG]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return ModelFolder(_shown(name), None, f"its folder cannot be read ({error.strerror})", readable=False)
        versions = {version: text for text in names if (version := parse_version(text)) is not None}
        if not names or (not versions and CONFIG not in names):
            return None
        reason = check_model_name(name)
        if reason is not None:
            return ModelFolder(_shown(name), None, reason)
        found = {version: files for version, text in versions.items() if (files := self._version(name, text))}
        try:
            config = model_config.parse(read_file(folder, CONFIG, 1 << 20) if CONFIG in names else b"")
        except (ValueError, LoadRejected) as error:
            return ModelFolder(name, None, str(error), found)
        return ModelFolder(name, config, "", found)

    def _version(self, model: str, text: str) -> VersionFiles | None:
        """None for a folder without model.onnx and manifest: it counts as removed.

        A folder that another one takes the place of meanwhile is being deleted, so the other one is looked at.
        """
        folder = self.root / model / text
        for _ in range(LOOKS):
            before = _inode(folder)
            found = self._files(folder, model, int(text))
            if _inode(folder) == before:
                break
        return found

    def _files(self, folder: Path, model: str, version: int) -> VersionFiles | None:
        try:
            listing = _listing(folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return VersionFiles(version, folder, "", False, False, f"its folder cannot be read ({error.strerror})")
        if MANIFEST not in listing:
            if MODEL not in listing:
                return None
            files = {name: listing[name] for name in (MODEL, GOLDEN) if name in listing}
            changed = max(status.st_ctime for status in files.values())
            # A change time in the future means that the clock was set back; then it is no reason to wait.
            quiet = abs(self._clock() - changed) >= self.quiet_s
            waiting = "" if quiet else f"written less than {self.quiet_s:g} s ago"
            return VersionFiles(version, folder, _fingerprint(files), quiet, False, waiting)
        try:
            manifest = read_manifest(folder, model, version)
        except LoadRejected:
            return VersionFiles(version, folder, _fingerprint(listing), True, True)
        waiting = ""
        for name, entry in sorted(manifest.files.items()):
            size = listing[name].st_size if name in listing else 0
            if name not in listing or size < entry.size:
                waiting = f"{name} has {size} of {entry.size} bytes"
        files = {name: status for name, status in listing.items() if name == MANIFEST or name in manifest.files}
        return VersionFiles(version, folder, _fingerprint(files), not waiting, True, waiting)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """True also where that cannot be found out, such as in a loop of links: opening it will say why."""
    try:
        return entry.is_dir()
    except OSError:
        return True


def _shown(name: str) -> str:
    """A folder name as text that can be encoded: bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _inode(folder: Path) -> int | None:
    """What tells one folder from another of the same name; None where it cannot be found out."""
    try:
        return os.stat(folder).st_ino
    except OSError:
        return None


def _listing(folder: Path) -> dict[str, os.stat_result]:
    """The files of a folder. One that goes while it is looked at, as copying tools' do, is left out."""
    found: dict[str, os.stat_result] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found[entry.name] = entry.stat(follow_symlinks=False)
    return found


def _fingerprint(files: Mapping[str, os.stat_result]) -> str:
    digest = hashlib.sha256()
    for name, status in sorted(files.items()):
        facts = (name, status.st_size, status.st_mtime_ns, status.st_ino, stat.S_IFMT(status.st_mode))
        digest.update(repr(facts).encode())
    return digest.hexdigest()[:16]


def wanted_versions(folders: Mapping[str, ModelFolder]) -> int:
    """How many versions the rules in the model folder ask for: so many sessions share the cores, at least one."""
    count = 0
    for folder in folders.values():
        if folder.config is not None:
            views = [policy.VersionView(version) for version in folder.versions]
            count += len(policy.aspired(views, folder.config.versions, folder.config.aliases.values(), policy.Wishes()))
    return max(1, count)
