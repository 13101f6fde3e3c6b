"""Golden samples: requests with the answers that a version must give, on every machine that loads it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from gateway.errors import InvalidRequest, LoadRejected
from gateway.oip import tensors
from gateway.oip.datatypes import DATATYPES, Datatype
from gateway.oip.limits import Limits
from gateway.types import Array, TensorSpec

MAX_GOLDEN_BYTES = 8 << 20
"""The largest `golden.json` that is read: as objects its text can take twenty times as much memory."""


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor as JSON. FP16 stands as numbers, BF16 as its 16 bits; null is NaN or an infinity."""

    name: str
    datatype: str
    shape: list[int]
    data: Any


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request; without `outputs` it is only an input to answer."""

    inputs: list[Tensor]
    outputs: list[Tensor] = []


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`golden.json`. An output agrees where |got - expected| <= atol + rtol * |expected|; all else must be equal."""

    samples: list[Sample]
    rtol: float = 1e-4
    atol: float = 1e-5


def to_arrays(items: list[Tensor], specs: tuple[TensorSpec, ...], where: str) -> dict[str, Array]:
    """The arrays of a sample in the order of the contract. Raises LoadRejected, naming the tensor."""
    limits = Limits()
    by_name = {item.name: item for item in items}
    if sorted(by_name) != sorted(spec.name for spec in specs):
        raise LoadRejected(f"{where} has {sorted(by_name)}, but the model has {sorted(spec.name for spec in specs)}")
    arrays: dict[str, Array] = {}
    for spec in specs:
        item = by_name[spec.name]
        path = f"{where}[{spec.name!r}]"
        try:
            tensors.check_datatype(item.datatype, spec, f"{path}.datatype")
            shape = tensors.check_shape(item.shape, spec, limits, f"{path}.shape")
            arrays[spec.name] = tensors.from_json(item.data, shape, _plain(item.datatype), f"{path}.data")
        except InvalidRequest as error:
            raise LoadRejected(error.message) from None
    return arrays


def from_array(array: Array, spec: TensorSpec) -> Tensor:
    """A tensor of a golden sample."""
    values = array.reshape(-1).tolist()
    if array.dtype.kind == "f":
        values = [value if np.isfinite(value) else None for value in values]
    return Tensor(spec.name, spec.datatype, list(array.shape), values)


def difference(got: Array, expected: Array, golden: Golden) -> str:
    """What is different between an output and the golden one, in words; empty where they agree."""
    if got.shape != expected.shape:
        return f"shape {tensors.show(got.shape)} instead of {tensors.show(expected.shape)}"
    if got.dtype.kind != "f":
        wrong = np.flatnonzero((got != expected).reshape(-1))
        if not wrong.size:
            return ""
        index = int(wrong[0])
        return f"element {index} is {got.reshape(-1)[index]!r:.40} instead of {expected.reshape(-1)[index]!r:.40}"
    have, want = got.astype(np.float64).reshape(-1), expected.astype(np.float64).reshape(-1)
    finite = np.isfinite(want)
    if not np.array_equal(np.isfinite(have), finite):
        return "NaN or infinite in other places"
    apart = np.abs(have[finite] - want[finite])
    if np.all(apart <= golden.atol + golden.rtol * np.abs(want[finite])):
        return ""
    return f"off by up to {apart.max():.3g}, allowed are atol {golden.atol:g} and rtol {golden.rtol:g}"


def _plain(name: str) -> Datatype:
    """The datatype with its values allowed in JSON, which the protocol forbids but a sample file needs."""
    row = DATATYPES[name]
    return Datatype(row.name, row.size, row.dtype, row.ort)
