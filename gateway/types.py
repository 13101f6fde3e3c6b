"""The architecture on one screen.

A request is decoded to an `InferRequest`, a `Handler` answers it with an `InferResponse`; admission, batching,
mirroring and monitoring each take a Handler and are one. `Contract` is what a version promises about its tensors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from numpy.typing import NDArray

Array = NDArray[Any]
Scalar = str | int | float | bool


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output: `shape` has -1 for a free axis and is None where the graph leaves even the rank open."""

    name: str
    datatype: str
    shape: tuple[int, ...] | None


class Contract(msgspec.Struct, frozen=True):
    """What a version takes and gives. `batched`: axis 0 is a batch axis and row i of a batch equals row i alone."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool = False


class OutputRequest(msgspec.Struct, frozen=True):
    """One requested output: its name, whether it travels as binary, and top-k classes (0: the tensor itself)."""

    name: str
    binary: bool
    classification: int = 0


class InferRequest(msgspec.Struct):
    """A decoded, checked request. `inputs` holds one C-contiguous array per contract input; BF16 as uint16 bits."""

    id: str
    parameters: Mapping[str, Scalar]
    inputs: Mapping[str, Array]
    outputs: tuple[OutputRequest, ...]
    rows: int
    timeout_s: float | None = None


class InferResponse(msgspec.Struct):
    """The answer of one version: arrays in the order of the request's `outputs`."""

    model: str
    version: int
    outputs: tuple[Array, ...]


Handler = Callable[[InferRequest], Awaitable[InferResponse]]

__all__ = ["Array", "Contract", "Handler", "InferRequest", "InferResponse", "OutputRequest", "Scalar", "TensorSpec"]
