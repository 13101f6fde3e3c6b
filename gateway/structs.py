"""Structs: what msgspec knows of a class it finds out when that is first decoded. Two threads must not do so at once.

The second one finds what the first one has begun and not finished, and the process ends with a segmentation fault
(msgspec 0.22). So all that is known by then is found out before a process has threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import msgspec


def prepare() -> None:
    """Have every struct that was imported by now ready to be decoded by any thread. Takes a few milliseconds."""
    for kind in _below(msgspec.Struct):
        # One with fields that no format has, or with types that are imported for type checkers alone, is never decoded.
        with suppress(TypeError, NameError):
            msgspec.json.Decoder(kind)


def _below(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)
