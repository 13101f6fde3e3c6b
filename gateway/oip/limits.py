"""What a request may ask for before anything is allocated for it."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """Counts and bytes; the settings of the same names fill it.

    `max_body_bytes` holds also after inflating; `max_elements` is per tensor; `max_json_depth` counts every level.
    """

    max_body_bytes: int = 8 << 20
    max_tensors: int = 64
    max_elements: int = 4 << 20
    max_rank: int = 8
    max_json_depth: int = 100
    max_text: int = 256
    """Characters of an `id`, and of a string value or key in `parameters`."""
