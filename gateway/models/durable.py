"""Durable: writes that are on disk when they return, and folders that change places in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# File systems that cannot exchange say one of these.
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def write(path: Path, content: bytes) -> None:
    """Write a file; its content, not yet its name, is durable. Raises OSError."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(new: Path, old: Path) -> Path:
    """Put `new` in the place of `old`, both folders of one file system; returns where the old one lies now.

    No moment sees neither of them where the system can exchange names; elsewhere there is one between two renames.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    swap = getattr(libc, "renameat2", None)
    if swap is not None:
        if swap(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
            return new
        code = ctypes.get_errno()
        if code not in _CANNOT:
            raise OSError(code, os.strerror(code), str(old))
    aside = old.with_name(f".replaced-{old.name}-{secrets.token_hex(4)}")
    old.rename(aside)
    new.rename(old)
    return aside
