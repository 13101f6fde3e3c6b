"""Strategies for contracts and for the bodies of infer requests: right ones, unusual ones and wrong ones.

A body is a right one with at most two oddities, so that most bodies are close to right ones: there the fast forms and
the general codec could disagree.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from gateway.oip.datatypes import DATATYPES, is_float
from gateway.oip.limits import Limits
from gateway.types import Array, Contract, TensorSpec
from tests.oip.arrays import IN_JSON, arrays

NAMES = ("x", "y", "w", "x y", "é", "z%s", "a:b", 'q"', "true")
LIMITS = Limits(max_elements=36, max_tensors=3, max_rank=3, max_json_depth=6, max_text=20)
"""Small ones, so that requests come to them. Twelve rows of the widest input are a whole block."""

ROWS = (1, 1, 1, 2, 3, 12)
IN_TEXT = (
    "escaped",
    "escaped key",
    "indent",
    "key twice",
    "first key twice",
    "last key twice",
    "no document",
    "list around",
)
IN_BYTES = ("byte changed", "byte taken", "byte put", "cut off")
IN_VALUES = ("value strange", "value more", "value less", "no list", "nested", "nested flat")
IN_ITEMS = ("dimension strange", "shape strange", "name", "datatype", "member more", "member less", "other order")
IN_SHAPES = ("no rows", "13 rows", "rows differ", "rank differs", "width differs")
IN_BINARY = ("header length", "size strange", "data too", "bytes more", "bytes less")
MEMBERS = ("id", "parameters", "outputs", "comment", "inputs shuffled")
ODDITIES = (*IN_TEXT, *IN_BYTES, *IN_VALUES, *IN_ITEMS, *IN_SHAPES, *IN_BINARY, *MEMBERS)
FORMS = ("json",) * 6 + ("binary",) * 3 + ("mixed", "raw")

STRANGE: tuple[Any, ...] = (
    *(None, True, False, "1", "a:b", "true", "", [1], {}, {"a": 1}),
    *(0, 1, 1.0, -0.0, 0.5, 255, 256, -128, -129, 65536, 1 << 31, -(1 << 31), 1 << 32, 1 << 63, -(1 << 63), 1 << 64),
    *(16777217, (1 << 53) + 1, (1 << 62) + 1, 1e39, -1e300, 3.4028236e38, 3.4028235e38, 1e-46, 5e-324, 10**30),
)


class Body(NamedTuple):
    """What a client sends: the body and the header that says how long its JSON part is (None: it is all JSON)."""

    body: bytes
    header: str | None


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    """Contracts of one to three inputs, batched and of fixed row shapes for the most part."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    kind = draw(st.sampled_from(["rows"] * 6 + ["free", "whole", "any rank"]))
    kinds = draw(st.sampled_from([("FP32",), ("FP32", "FP64", "INT64", "INT8", "BYTES"), IN_JSON, tuple(DATATYPES)]))
    inputs = []
    for name in names:
        shape: tuple[int, ...] | None = (-1, *draw(st.sampled_from([(), (1,), (2,), (3,), (3, 1)])))
        if kind == "free":
            shape = (-1, -1)
        elif kind == "whole":
            shape = (2, 2)
        elif kind == "any rank":
            shape = None
        inputs.append(TensorSpec(name, draw(st.sampled_from(kinds)), shape))
    outputs = [TensorSpec("out", draw(st.sampled_from(["FP32"] * 7 + ["FP16"])), (-1, 1))]
    if draw(st.booleans()):
        outputs.append(TensorSpec("p", "BYTES", (-1,)))
    return Contract(tuple(inputs), tuple(outputs), batched=kind in ("rows", "free"))


@st.composite
def plain_contracts(draw: st.DrawFn) -> Contract:
    """Contracts whose requests have a plain form: one or two inputs of the common datatypes."""
    inputs = [
        TensorSpec(
            name,
            draw(st.sampled_from(["FP32", "FP32", "FP64", "INT64", "INT8", "BOOL", "BYTES"])),
            (-1, *draw(st.sampled_from([(), (1,), (3,)]))),
        )
        for name in draw(st.sampled_from(["x", "xy"]))
    ]
    return Contract(tuple(inputs), (TensorSpec("out", "FP32", (-1, 1)),), batched=True)


@st.composite
def oddities(draw: st.DrawFn) -> Set[str]:
    """None, one or two."""
    return frozenset(draw(st.one_of(st.just([]), st.lists(st.sampled_from(ODDITIES), min_size=1, max_size=2))))


@st.composite
def bodies(draw: st.DrawFn, contract: Contract, odd: Set[str], forms: Sequence[str] = FORMS) -> Body:
    """One body for a contract, as JSON, binary, both, or raw."""
    form = draw(st.sampled_from(forms))
    rows = 0 if "no rows" in odd else 13 if "13 rows" in odd else draw(st.sampled_from(ROWS))
    if form == "raw" and len(contract.inputs) == 1:
        rows = 1
    values = []
    for spec in contract.inputs:
        values.append(draw(arrays(spec.datatype, st.just(_shape(draw, spec, rows, odd)))))
    tail = b"\0" if "bytes more" in odd else b""
    if form == "raw":
        blob = b"".join(_binary(value, spec) for value, spec in zip(values, contract.inputs, strict=True))
        return Body(blob[: -1 if "bytes less" in odd else None] + tail, draw(st.sampled_from(["0", "0", "00", " 0"])))
    items, blobs = [], []
    # Of several inputs only one is odd.
    chosen = draw(st.sampled_from(contract.inputs))
    for spec, value in zip(contract.inputs, values, strict=True):
        binary = form == "binary" or (form == "mixed" and draw(st.booleans()))
        items.append(_item(draw, spec, value, binary, odd if spec is chosen else frozenset()))
        blobs.append(_binary(value, spec) if binary else b"")
    order = draw(st.permutations(range(len(items)))) if "inputs shuffled" in odd else range(len(items))
    text = _text(draw, {"inputs": [items[at] for at in order], **_members(draw, contract, odd)}, odd)
    if form == "json":
        return Body(text, None)
    tail = b"".join(blobs[at] for at in order)[: -1 if "bytes less" in odd else None] + tail
    length = str(len(text))
    if "header length" in odd:
        length = draw(st.sampled_from([f" {length} ", f"0{length}", str(len(text) + 1), str(len(text) - 1), "", "x"]))
    return Body(text + tail, length)


@st.composite
def twins(draw: st.DrawFn, contract: Contract) -> list[Body]:
    """Binary bodies under one and the same JSON part, and some under a part that differs a little."""
    right = bodies(contract, draw(oddities()), ("binary",))
    first = draw(right.filter(lambda body: body.header is not None and body.header.strip().isdigit()))
    assert first.header is not None
    length = int(first.header)
    text, tail = first.body[:length], first.body[length:]
    found = [first]
    for _ in range(draw(st.integers(1, 3))):
        change = draw(st.sampled_from(["data", "data", "text", "cut", "more", "moved"]))
        other = draw(st.binary(min_size=len(tail), max_size=len(tail)))
        if change == "text":
            moved = text.replace(b"}", b" }", 1)
            found.append(Body(moved + other, str(len(moved))))
        elif change == "moved":
            found.append(Body(text + other, str(max(0, length - 1))))
        else:
            found.append(Body(text + {"data": other, "cut": other[:-1], "more": other + b"\0"}[change], first.header))
    return found


def _shape(draw: st.DrawFn, spec: TensorSpec, rows: int, odd: Set[str]) -> tuple[int, ...]:
    """A shape as the input has it, unless that is the oddity."""
    if spec.shape is None:
        return tuple(draw(st.lists(st.integers(0, 2), max_size=3)))
    full = [draw(st.integers(0, 3)) if dim == -1 else dim for dim in spec.shape]
    if spec.shape[0] == -1:
        full[0] = rows + (1 if "rows differ" in odd and draw(st.booleans()) else 0)
    if "rank differs" in odd:
        full.append(1)
    if "width differs" in odd:
        full[-1] = draw(st.integers(0, 3))
    return tuple(full)


def _item(draw: st.DrawFn, spec: TensorSpec, value: Array, binary: bool, odd: Set[str]) -> dict[str, Any]:
    shape: Any = list(value.shape)
    if "dimension strange" in odd and shape:
        at = draw(st.integers(0, len(shape) - 1))
        equal, other = [float(shape[at]), bool(shape[at])], [str(shape[at]), -1, 1 << 70, None]
        shape[at] = draw(st.sampled_from([*equal, *equal, *other]))
    if "shape strange" in odd:
        shape = draw(st.sampled_from(["text", 3, {}, [[1]], [], None]))
    item: dict[str, Any] = {"name": spec.name, "shape": shape, "datatype": spec.datatype}
    if "name" in odd:
        item["name"] = draw(st.sampled_from(["x", "y", "w", "other", 1, None, []]))
    if "datatype" in odd:
        item["datatype"] = draw(st.sampled_from([*DATATYPES, "TYPE_FP32", 1, None]))
    if binary:
        size = len(_binary(value, spec))
        if "size strange" in odd:
            size = draw(st.sampled_from([size + 1, size - 1, str(size), float(size), True, None, 1 << 70]))
        item["parameters"] = {"binary_data_size": size}
    if not binary or "data too" in odd:
        item["data"] = _data(draw, spec, value, odd)
    if "member more" in odd:
        item[draw(st.sampled_from(["comment", "parameters"]))] = draw(st.sampled_from(["a:b", {}, {"a": 1}, None]))
    if "member less" in odd:
        del item[draw(st.sampled_from(sorted(item)))]
    if "other order" in odd:
        item = {key: item[key] for key in draw(st.permutations(sorted(item)))}
    return item


def _data(draw: st.DrawFn, spec: TensorSpec, value: Array, odd: Set[str]) -> Any:
    """The values as JSON; what JSON cannot say is null, and a whole number among floats may come as an integer."""
    array = value.astype(np.float32) if spec.datatype in ("FP16", "BF16") else value
    flat: list[Any] = array.reshape(-1).tolist()
    if is_float(spec.datatype):
        spelling = draw(st.sampled_from(["null", "zero", "integers"]))
        flat = [each if np.isfinite(each) else None if spelling == "null" else 0 for each in flat]
        if spelling == "integers":
            flat = [int(each) if abs(each) < 1 << 62 else each for each in flat]
    if "value strange" in odd and flat:
        flat[draw(st.integers(0, len(flat) - 1))] = draw(st.sampled_from(STRANGE))
    if "value more" in odd:
        flat.append(flat[-1] if flat else 1)
    if "value less" in odd and flat:
        flat.pop()
    if "no list" in odd:
        return draw(st.sampled_from([1, "a", "abc", None, {"a": 1}, {}, True, flat[0] if flat else ""]))
    if "nested" in odd and len(flat) == value.size:
        return _nested(flat, value.shape)
    return [flat] if "nested flat" in odd else flat


def _nested(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    step = len(flat) // shape[0] if shape[0] else 0
    return [_nested(flat[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])]


def _binary(value: Array, spec: TensorSpec) -> bytes:
    if spec.datatype == "BYTES":
        encoded = [text.encode() for text in value.reshape(-1).tolist()]
        return b"".join(struct.pack("<I", len(each)) + each for each in encoded)
    return value.tobytes()


def _members(draw: st.DrawFn, contract: Contract, odd: Set[str]) -> dict[str, Any]:
    """What may stand beside the inputs."""
    parameters = st.dictionaries(
        st.sampled_from(["priority", "timeout", "nonfinite", "binary_data_output", "triton_x", "my own"]),
        st.sampled_from([0, 1, 2, 3, 1 << 32, -1, 1500, "null", "literal", "other", True, False, 1.5]),
        max_size=2,
    )
    wanted = st.sampled_from([spec.name for spec in contract.outputs] * 5 + ["none of these"])
    options = st.sampled_from([{}, {"binary_data": True}, {"classification": 2}, {"binary_data": 1}])
    asked = st.fixed_dictionaries({"name": wanted}, optional={"parameters": options})
    members: dict[str, st.SearchStrategy[Any]] = {
        "id": st.sampled_from(["", "a", "a:b", 'quote"', "é" * 20, "é" * 21, 5, None]),
        "parameters": st.one_of(st.builds(lambda priority: {"priority": priority}, st.integers(0, 4)), parameters),
        "outputs": st.lists(asked, max_size=2),
        "comment": st.sampled_from([1, "a:b", {"a": [1, {"b": ":"}]}]),
    }
    return {name: draw(strategy) for name, strategy in members.items() if name in odd}


def _text(draw: st.DrawFn, document: dict[str, Any], odd: Set[str]) -> bytes:
    """A document as JSON text in one of the ways to spell it, a right one or a wrong one."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    indent = 1 if "indent" in odd else None
    text = json.dumps(document, ensure_ascii="escaped" in odd, indent=indent, separators=separators)
    if "key twice" in odd:
        text = text[:-1] + ',"inputs":[]}'
    if "first key twice" in odd:
        text = text.replace('"name"', '"name":"x","name"', 1)
    if "last key twice" in odd:
        text = text.replace("}]", ',"name":"x"}]', 1)
    if "escaped key" in odd:
        text = text.replace('"data"', '"d\\u0061ta"', 1).replace('"name"', '"n\\u0061me"', 1)
    if "no document" in odd:
        text = draw(st.sampled_from(["", "null", "1", '"inputs"', "[]", "{}"]))
    if "list around" in odd:
        text = f"[{text}]"
    whole = text.encode()
    if not whole:
        return whole
    at = draw(st.integers(0, len(whole) - 1)) if odd & set(IN_BYTES) else 0
    byte = bytes([draw(st.sampled_from(b'\0 "\\,:[]{}019-.eEtrufalsn\xff\xc3'))]) if at else b" "
    if "byte changed" in odd:
        whole = whole[:at] + byte + whole[at + 1 :]
    if "byte taken" in odd:
        whole = whole[:at] + whole[at + 1 :]
    if "byte put" in odd:
        whole = whole[:at] + byte + whole[at:]
    return whole[:at] if "cut off" in odd else whole


__all__ = ["LIMITS", "ODDITIES", "STRANGE", "Body", "bodies", "contracts", "oddities", "plain_contracts", "twins"]
