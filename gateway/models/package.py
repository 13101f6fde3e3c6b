"""Packaging: a model file becomes a version, checked first and published with one rename."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import msgspec

from gateway.errors import LoadRejected
from gateway.models import config as model_config
from gateway.models import durable
from gateway.models.golden import Golden, Sample, from_array, to_arrays
from gateway.models.manifest import (
    GOLDEN,
    MANIFEST,
    MODEL,
    Lineage,
    Manifest,
    check_model_name,
    entry_for,
    parse_version,
    read_manifest,
)
from gateway.models.options import SessionOptions
from gateway.models.quarantine import Job, Report, try_version

MAX_MODEL_BYTES = 512 << 20
MEMORY_BYTES = 512 << 20
TIMEOUT_S = 120.0

__all__ = ["Lineage", "add_file", "add_version", "check_version"]


def check_version(folder: Path, model: str, version: int, config: model_config.ModelConfig | None = None) -> Report:
    """Try the version in `folder` in quarantine, as a server would. Raises LoadRejected or LoadUnavailable."""
    batching = config.batching.enabled if config is not None else True
    job = Job(str(folder), model, version, SessionOptions(), MAX_MODEL_BYTES, MEMORY_BYTES, batching)
    return try_version(job, TIMEOUT_S)


def add_version(
    models: Path,
    name: str,
    model: Path,
    *,
    version: int | None = None,
    samples: Path | None = None,
    lineage: Lineage | None = None,
    replace: bool = False,
) -> Path:
    """Make `models/name/version` from a model file, with its manifest; returns that folder.

    `version` None takes the number after the highest one there. `samples` is a JSON list of requests, each with
    `inputs` and optionally the `outputs` to hold; where these are absent, the model's own answers become golden.
    The version is tried in quarantine before it becomes visible; a server never sees it half-written, nor, while it
    is replaced, gone.

    Raises LoadRejected with one sentence; FileExistsError where the version is there and `replace` is False.
    """
    reason = check_model_name(name)
    if reason is not None:
        raise LoadRejected(f"{name[:64]!r} cannot be used: {reason}")
    home = models / name
    if version is None:
        version = max(_versions(home), default=0) + 1
    target = home / str(version)
    if target.exists() and not replace:
        raise FileExistsError(f"{name} version {version} exists already")
    data = _read_model(model)
    home.mkdir(parents=True, exist_ok=True)
    staging = home / f".adding-{version}-{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        (staging / MODEL).write_bytes(data)
        report = check_version(staging, name, version)
        contents = {MODEL: data}
        if samples is not None:
            contents[GOLDEN] = _golden(data, report, samples)
        manifest = Manifest(
            model=name,
            version=version,
            files={file: entry_for(content) for file, content in contents.items()},
            lineage=lineage or Lineage(),
            signature=report.contract,
        )
        contents[MANIFEST] = _encoded(manifest)
        for file, content in contents.items():
            durable.write(staging / file, content)
        check_version(staging, name, version)
        if target.exists():
            shutil.rmtree(durable.exchange(staging, target))
        else:
            staging.rename(target)
        durable.sync(home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def add_file(folder: Path, name: str, content: bytes) -> None:
    """Put a file into a version folder, in place of one of that name.

    Where the folder has a manifest the file is listed there, and no server sees one of the two without the other.
    Raises LoadRejected where the manifest is not valid; OSError.
    """
    folder = folder.resolve()
    if not (folder / MANIFEST).exists():
        part = folder / f".{name}.part"
        durable.write(part, content)
        part.replace(folder / name)
        durable.sync(folder)
        return
    manifest = read_manifest(folder, folder.parent.name, parse_version(folder.name) or 0)
    manifest = msgspec.structs.replace(manifest, files=manifest.files | {name: entry_for(content)})
    staging = folder.with_name(f".adding-{folder.name}-{secrets.token_hex(4)}")
    try:
        shutil.copytree(folder, staging, ignore=shutil.ignore_patterns(name, MANIFEST), copy_function=_link)
        durable.write(staging / name, content)
        durable.write(staging / MANIFEST, _encoded(manifest))
        durable.sync(staging)
        shutil.rmtree(durable.exchange(staging, folder))
        durable.sync(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _link(source: str, target: str) -> None:
    """The same file under another name; a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _encoded(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"


def _read_model(path: Path) -> bytes:
    """The file to package, wherever it lies and whatever it is called. Raises LoadRejected."""
    try:
        if not path.is_file():
            raise LoadRejected(f"{path.name} is missing, or not a file")
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise LoadRejected(f"{path.name} is {size} bytes, at most {MAX_MODEL_BYTES} are taken")
        return path.read_bytes()
    except OSError as error:
        raise LoadRejected(f"{path.name} cannot be read ({error.strerror})") from None


def _versions(home: Path) -> list[int]:
    if not home.is_dir():
        return []
    return [version for entry in home.iterdir() if (version := parse_version(entry.name)) is not None]


def _golden(model: bytes, report: Report, path: Path) -> bytes:
    """The golden samples: those given, with the model's own answers where none are expected."""
    from gateway.models.session import Session

    try:
        samples = msgspec.json.decode(path.read_bytes(), type=list[Sample])
    except OSError as error:
        raise LoadRejected(f"the samples file {path.name} cannot be read ({error.strerror})") from None
    except msgspec.DecodeError as error:
        wanted = 'a list of requests, [{"inputs": [...]}, ...]'
        raise LoadRejected(f"the samples file is not valid; it must be {wanted}: {error}") from None
    session = Session(model, SessionOptions(), report.unranked)
    contract = session.contract
    complete: list[Sample] = []
    for index, sample in enumerate(samples):
        feed = to_arrays(sample.inputs, contract.inputs, f"sample {index} inputs")
        outputs = sample.outputs
        if not outputs:
            results = session.run(feed, [spec.name for spec in contract.outputs])
            outputs = [from_array(array, spec) for array, spec in zip(results, contract.outputs, strict=True)]
        complete.append(Sample(sample.inputs, outputs))
    return msgspec.json.encode(Golden(complete)) + b"\n"
