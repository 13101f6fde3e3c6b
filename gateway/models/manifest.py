"""The manifest of a version: what its files are, to the byte, and where they come from."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import TypeVar

import msgspec

from gateway.errors import LoadRejected
from gateway.types import Contract

MANIFEST = "manifest.json"
MODEL = "model.onnx"
GOLDEN = "golden.json"

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_T = TypeVar("_T")


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a version: bytes and lower-case hexadecimal SHA-256."""

    size: int
    sha256: str


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a version comes from: what an auditor asks first. Empty strings mean that nobody said.

    `training_data` is a digest such as ``sha256:...``, `created` an RFC 3339 time, `metrics` what was measured then.
    """

    author: str = ""
    reason: str = ""
    training_data: str = ""
    code_revision: str = ""
    metrics: dict[str, float] = {}
    created: str = ""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.json`, beside the files it lists. Files that it does not list are never opened."""

    model: str
    version: int
    files: dict[str, FileEntry]
    lineage: Lineage = Lineage()
    signature: Contract | None = None
    manifest_version: int = 1


def check_model_name(name: str) -> str | None:
    """Why a name cannot be a model's, None if it can. `stats` would shadow a route of the protocol."""
    if not _MODEL_NAME.fullmatch(name):
        return "a model name is 1 to 64 of A-Z a-z 0-9 . _ - and begins with a letter or a digit"
    return "the name 'stats' is a route of the protocol" if name == "stats" else None


def parse_version(text: str) -> int | None:
    """The version that a folder name or URL slot spells: a positive decimal integer without leading zeros."""
    return int(text) if _VERSION.fullmatch(text) else None


def is_alias(text: str) -> bool:
    """True for a name that may stand for a version: a small letter, then up to 31 of a-z 0-9 _ -."""
    return _ALIAS.fullmatch(text) is not None


def sha256(data: bytes) -> str:
    """Lower-case hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def read_file(folder: Path, name: str, max_bytes: int) -> bytes:
    """Read one regular file of a version folder, never through a symbolic link and never more than `max_bytes`.

    Raises LoadRejected.
    """
    if not _FILE_NAME.fullmatch(name):
        raise LoadRejected(f"file name {name[:64]!r} is not allowed in a version folder")
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LoadRejected(f"{name} is missing") from None
    except OSError as error:
        raise LoadRejected(f"{name} cannot be opened ({error.strerror}); it must be a regular, readable file") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise LoadRejected(f"{name} must be a regular file")
        if status.st_size > max_bytes:
            raise LoadRejected(f"{name} is {status.st_size} bytes, at most {max_bytes} are taken")
        with open(descriptor, "rb", closefd=False) as file:
            # Not max_bytes: so much would be allocated first.
            return file.read(status.st_size)
    except OSError as error:
        raise LoadRejected(f"{name} cannot be read ({error.strerror})") from None
    finally:
        os.close(descriptor)


def read_json(folder: Path, name: str, type_: type[_T], max_bytes: int) -> _T:
    """Read and validate one JSON file of a version folder. Raises LoadRejected, naming the path inside it."""
    data = read_file(folder, name, max_bytes)
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LoadRejected(f"{name} is not valid: {error}") from None


def read_manifest(folder: Path, model: str, version: int) -> Manifest:
    """The manifest of a version folder, consistent with where it lies. Raises LoadRejected."""
    manifest = read_json(folder, MANIFEST, Manifest, 1 << 20)
    if manifest.manifest_version != 1:
        raise LoadRejected(f"{MANIFEST}: manifest_version {manifest.manifest_version} is unknown, expected 1")
    if (manifest.model, manifest.version) != (model, version):
        raise LoadRejected(
            f"{MANIFEST} is for {manifest.model[:64]!r} version {manifest.version}, but lies in {model!r} {version}"
        )
    if MODEL not in manifest.files:
        raise LoadRejected(f"{MANIFEST} does not list {MODEL}")
    for name, entry in manifest.files.items():
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise LoadRejected(f"{MANIFEST} lists {name[:64]!r}, which is not an allowed file name")
        if entry.size < 0 or not re.fullmatch("[0-9a-f]{64}", entry.sha256):
            raise LoadRejected(f"{MANIFEST}: the entry of {name} needs a size and a sha256 of 64 hexadecimal digits")
    return manifest


def verified_file(folder: Path, name: str, manifest: Manifest, max_bytes: int) -> bytes:
    """Read a file that the manifest lists and compare size and digest with it. Raises LoadRejected."""
    data = read_file(folder, name, max_bytes)
    entry = manifest.files[name]
    if len(data) != entry.size:
        raise LoadRejected(f"{name} is {len(data)} bytes, but its manifest says {entry.size}")
    if sha256(data) != entry.sha256:
        raise LoadRejected(f"sha256 mismatch: {name} is not the file that its manifest describes")
    return data


def entry_for(data: bytes) -> FileEntry:
    """The manifest entry of a file's content."""
    return FileEntry(len(data), sha256(data))
