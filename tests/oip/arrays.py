"""Strategies for arrays of every datatype, shapes with zeros and scalars included."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from gateway.oip.datatypes import DATATYPES
from gateway.types import Array

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
IN_JSON = [row.name for row in DATATYPES.values() if row.in_json]
WHOLE = [name for name in DATATYPES if name.startswith(("INT", "UINT"))]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def arrays(datatype: str, shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES) -> st.SearchStrategy[Array]:
    """Arrays of a datatype: all bit patterns of numbers, NaN with payload included; strings without surrogates."""
    row = DATATYPES[datatype]
    if datatype == "BYTES":
        return shapes.flatmap(lambda shape: npst.arrays(object, shape, elements=TEXTS, fill=st.nothing()))
    if row.dtype.kind == "f":
        bits = np.dtype(f"<u{row.size}")
        return shapes.flatmap(lambda shape: npst.arrays(bits, shape)).map(lambda array: array.view(row.dtype))
    return shapes.flatmap(lambda shape: npst.arrays(row.dtype, shape))


def values(array: Array, *, flat: bool) -> Any:
    """An array as JSON values; NaN is null, and an infinity, which JSON has none of, is null too."""
    plain = array.ravel().tolist() if flat else array.tolist()
    return _null(plain)


def _null(value: Any) -> Any:
    if isinstance(value, list):
        return [_null(member) for member in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def same(left: Array, right: Array) -> bool:
    """Equal in shape, dtype and every bit (strings: every character)."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return left.tolist() == right.tolist() if left.dtype == object else left.tobytes() == right.tobytes()
