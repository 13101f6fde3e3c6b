"""What the bytes of a JSON text tell without reading it, for `reader`."""

from __future__ import annotations

import re
from typing import Any

BACKSLASH, LETTER_R, LETTER_L, OPEN, CLOSE, QUOTE = b'\\rl[]"'
"""As numbers: bytes look for a number four times as fast as for a string of one byte."""

DATA = b'"data":'
DATA_KEY = re.compile(rb'"data"\s*:')

ID_FIRST = b'{"id":'
"""How a request begins to which its client gave an id, as most write it that give each one."""


def split_id(text: bytes, most: int) -> tuple[str, bytes]:
    """The id that a JSON object begins with, as clients write it that give each request one, and the object without it.

    ("", text) where there is none, or one that is not plain or longer than `most`. With an id in front, an object is
    right where it is right without.
    """
    start = 7 if text.startswith(b'{"id":"') else 8 if text.startswith(b'{"id": "') else 0
    stop = text.find(QUOTE, start)
    name = text[start:stop]
    if not start or not start < stop <= start + most or not text.startswith(b",", stop + 1):
        return "", text
    if BACKSLASH in name or not name.isascii() or not (plain := name.decode()).isprintable():
        return "", text
    return plain, b"{" + text[stop + 2 :]


def colons(body: bytes) -> int:
    """Colons outside of the numbers of the last tensor; counting through these would take as long as reading them.

    Without a backslash in the body, the bytes ``"data":[`` can only be that key and the beginning of its list, and a
    list of numbers ends at the next bracket; a list of anything else is refused when it is packed.
    """
    start = body.rfind(b"[")
    if body.startswith(b'"data":', start - 7) or body.startswith(b'"data": ', start - 8):
        return body.count(b":", 0, start) + body.count(b":", body.find(b"]", start))
    return body.count(b":")


def may_hold_booleans(body: bytes) -> bool:
    """struct packs True as 1. A letter is found much faster than a word, and rarely stands in a body of numbers."""
    return (LETTER_R in body and b"true" in body) or (LETTER_L in body and b"false" in body)


def are_whole(shape: list[Any]) -> bool:
    """1.0 and true are equal to 1, but they are no dimensions."""
    # A plain loop: a generator would take as long as all the rest.
    for dim in shape:  # noqa: SIM110
        if type(dim) is not int:
            return False
    return True
