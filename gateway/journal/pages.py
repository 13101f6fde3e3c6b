"""Pages: memory of a mapped file is made writable before anything is written to it, aside of the event loop.

With the first write to a page the file system looks for its place: some microseconds, in the middle of a request.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

from gateway.types import Array

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14


def make_writable(array: Array) -> None:
    """Map the pages of a contiguous array for writing; what they hold stays. Where a system cannot, nothing happens."""
    advise = _advise()
    first = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    if advise is not None and array.nbytes:
        advise(first, array.ctypes.data + array.nbytes - first, _POPULATE_WRITE)


@cache
def _advise() -> Any:
    """``madvise``, called without the interpreter's lock."""
    if not sys.platform.startswith("linux"):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise
