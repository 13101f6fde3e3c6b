"""Bytes to `InferRequest`: the body of an infer call, read against a contract.

The body is a JSON object, followed by the binary data of those inputs that give `binary_data_size`; a header length
of 0 means a raw body, the bytes of the only input. Every refusal is an InvalidRequest that names the path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gateway.errors import InvalidRequest
from gateway.oip import tensors
from gateway.oip.datatypes import DATATYPES
from gateway.oip.jsontext import kind, parse_object, quote
from gateway.oip.limits import Limits
from gateway.types import Array, Contract, InferRequest, OutputRequest, Scalar, TensorSpec

NONFINITE = ("null", "literal")
"""Values of the request parameter `nonfinite`: how NaN and infinities are written in a JSON reply."""

MAX_TIMEOUT_US = 1 << 53


def json_length(header: str | None, body_length: int) -> int:
    """Bytes of the JSON part, from the Inference-Header-Content-Length header (None: the whole body is JSON)."""
    if header is None:
        return body_length
    value = header.strip()
    if not (value.isascii() and value.isdigit() and len(value) <= 20) or int(value) > body_length:
        raise InvalidRequest(
            f"Inference-Header-Content-Length must be an integer from 0 to the body length {body_length}, "
            f"got {quote(value)}",
            field="Inference-Header-Content-Length",
        )
    return int(value)


def decode(body: bytes, header: str | None, contract: Contract, limits: Limits, model: str) -> InferRequest:
    """Read one infer body.

    `header` is the value of Inference-Header-Content-Length or None; `model` is named in messages.
    Raises InvalidJSON or InvalidRequest.
    """
    length = json_length(header, len(body))
    if header is not None and length == 0:
        return _raw(body, contract, limits, model)
    document = parse_object(body[:length] if length != len(body) else body, limits.max_json_depth)
    parameters = _parameters(document.get("parameters"), "parameters", limits)
    blobs = _Blobs(memoryview(body)[length:], model)
    found = _inputs(document, contract, limits, blobs)
    blobs.done()
    return InferRequest(
        id=_id(document.get("id"), limits),
        parameters=parameters,
        inputs={spec.name: found[spec.name] for spec in contract.inputs},
        outputs=_outputs(document.get("outputs"), contract, limits, _flag(parameters, "binary_data_output", "")),
        rows=rows(found, contract),
        timeout_s=_timeout(parameters),
    )


def rows(inputs: Mapping[str, Array], contract: Contract) -> int:
    """Rows of a batched request, which all inputs must agree on; 1 where axis 0 is no batch axis.

    `inputs` stand in the order of the request, which the path in an error counts.
    """
    if not contract.batched or not contract.inputs:
        return 1
    counts = [(name, array.shape[0]) for name, array in inputs.items()]
    first, rows = counts[0]
    for index, (name, count) in enumerate(counts):
        if count != rows:
            raise InvalidRequest(
                f"axis 0 is the batch: input {first!r} has {rows} rows, input {name!r} has {count}",
                field=f"inputs[{index}].shape[0]",
            )
    return int(rows)


class _Blobs:
    """The binary part of a body, consumed from the front."""

    def __init__(self, rest: memoryview, model: str) -> None:
        self._rest = rest
        self._model = model

    def take(self, size: int, name: str, path: str) -> memoryview:
        if size > len(self._rest):
            raise InvalidRequest(
                f"unexpected size for input {name!r}, expecting {size - len(self._rest)} additional bytes "
                f"for model {self._model!r}",
                field=path,
            )
        blob, self._rest = self._rest[:size], self._rest[size:]
        return blob

    def done(self) -> None:
        if self._rest:
            raise InvalidRequest(
                f"unexpected additional input data for model {self._model!r}: {len(self._rest)} bytes are left over "
                "after the last input",
                field="inputs",
            )


def _id(value: object, limits: Limits) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRequest(f"id must be a string, got {kind(value)}", field="id")
    if len(value) > limits.max_text:
        raise InvalidRequest(f"id has {len(value)} characters, at most {limits.max_text} are taken", field="id")
    return value


def _parameters(value: object, path: str, limits: Limits) -> Mapping[str, Scalar]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} must be an object, got {kind(value)}", field=path)
    for key, member in value.items():
        where = f"{path}.{key[:64]}"
        if not isinstance(member, str | int | float):
            raise InvalidRequest(f"{where} must be a string, a number or a boolean, got {kind(member)}", field=where)
        if key.startswith("triton_"):
            raise InvalidRequest(f"{where}: parameter keys starting with 'triton_' are reserved", field=where)
        if len(key) > limits.max_text or (isinstance(member, str) and len(member) > limits.max_text):
            raise InvalidRequest(f"{where} is longer than {limits.max_text} characters", field=where)
    return value


def _tensor_parameters(item: Mapping[str, Any], path: str, limits: Limits) -> Mapping[str, Scalar]:
    """The parameters of an input or a requested output; none of them can travel in shared memory."""
    parameters = _parameters(item.get("parameters"), f"{path}.parameters", limits)
    if "shared_memory_region" in parameters:
        where = f"{path}.parameters.shared_memory_region"
        raise InvalidRequest(f"{where}: shared memory is not offered; use 'data' or binary data", field=where)
    return parameters


def _flag(parameters: Mapping[str, Scalar], key: str, path: str) -> bool:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        where = f"{path}parameters.{key}"
        raise InvalidRequest(f"{where} must be true or false, got {kind(value)}", field=where)
    return value


def _count(parameters: Mapping[str, Scalar], key: str, path: str, high: int) -> int | None:
    """An unsigned integer parameter of at most `high`; None where it is absent."""
    value = parameters.get(key)
    if value is None:
        return None
    where = f"{path}parameters.{key}"
    if type(value) is not int or not 0 <= value <= high:
        raise InvalidRequest(f"{where} must be an integer from 0 to {high}, got {kind(value)}", field=where)
    return value


def _timeout(parameters: Mapping[str, Scalar]) -> float | None:
    """`timeout` in microseconds as seconds (None or 0: not given); the other reserved keys are checked here too."""
    _count(parameters, "priority", "", 1 << 32)
    nonfinite = parameters.get("nonfinite", "null")
    if nonfinite not in NONFINITE:
        raise InvalidRequest(
            f"parameters.nonfinite must be one of {', '.join(NONFINITE)}, got {quote(str(nonfinite))}",
            field="parameters.nonfinite",
        )
    microseconds = _count(parameters, "timeout", "", MAX_TIMEOUT_US)
    return microseconds / 1e6 if microseconds else None


def _items(value: object, path: str, limits: Limits) -> list[tuple[str, dict[str, Any]]]:
    """A list of named objects as (name, object); names are strings and stand once."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{path} must be a list of objects, got {kind(value)}", field=path)
    if len(value) > limits.max_tensors:
        raise InvalidRequest(f"{path} has {len(value)} tensors, at most {limits.max_tensors} are taken", field=path)
    items: dict[str, dict[str, Any]] = {}
    for index, item in enumerate(value):
        where = f"{path}[{index}]"
        if not isinstance(item, dict):
            raise InvalidRequest(f"{where} must be an object, got {kind(item)}", field=where)
        name = item.get("name")
        if not isinstance(name, str):
            raise InvalidRequest(f"{where}.name must be a string, got {_missing(item, 'name')}", field=f"{where}.name")
        if name in items:
            raise InvalidRequest(f"{where}.name: {quote(name)} stands twice in {path}", field=f"{where}.name")
        items[name] = item
    return list(items.items())


def _missing(item: Mapping[str, Any], key: str) -> str:
    return kind(item[key]) if key in item else "nothing"


def _inputs(document: Mapping[str, Any], contract: Contract, limits: Limits, blobs: _Blobs) -> Mapping[str, Array]:
    """Every input of the contract, in the order of the request."""
    specs = {spec.name: spec for spec in contract.inputs}
    if "inputs" not in document:
        if specs:
            raise InvalidRequest("inputs must be a list of objects, got nothing", field="inputs")
        return {}
    found: dict[str, Array] = {}
    for index, (name, item) in enumerate(_items(document["inputs"], "inputs", limits)):
        path = f"inputs[{index}]"
        spec = specs.get(name)
        if spec is None:
            raise InvalidRequest(
                f"{path}.name: the model has no input {quote(name)}, its inputs are {_names(specs)}",
                field=f"{path}.name",
            )
        found[name] = _input(item, spec, limits, blobs, path)
    absent = [name for name in specs if name not in found]
    if absent:
        raise InvalidRequest(f"inputs lacks {_names(absent)}; the model's inputs are {_names(specs)}", field="inputs")
    return found


def _names(names: Any) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:16]) + (f" and {len(shown) - 16} more" if len(shown) > 16 else "")


def _input(item: Mapping[str, Any], spec: TensorSpec, limits: Limits, blobs: _Blobs, path: str) -> Array:
    for key in ("datatype", "shape"):
        if key not in item:
            raise InvalidRequest(f"{path}.{key} is missing", field=f"{path}.{key}")
    datatype = tensors.check_datatype(item["datatype"], spec, f"{path}.datatype")
    shape = tensors.check_shape(item["shape"], spec, limits, f"{path}.shape")
    parameters = _tensor_parameters(item, path, limits)
    size = _count(parameters, "binary_data_size", f"{path}.", limits.max_body_bytes)
    if ("data" in item) == (size is not None):
        found = "both are" if "data" in item else "no field is"
        raise InvalidRequest(
            f"{path} must set only one of the following fields: 'data', 'binary_data_size' in 'parameters'; "
            f"but {found} set",
            field=path,
        )
    if size is None:
        return tensors.from_json(item["data"], shape, datatype, f"{path}.data")
    where = f"{path}.parameters.binary_data_size"
    return tensors.from_binary(blobs.take(size, spec.name, where), shape, datatype, where)


def _outputs(value: object, contract: Contract, limits: Limits, binary: bool) -> tuple[OutputRequest, ...]:
    specs = {spec.name: spec for spec in contract.outputs}
    if value is None or value == []:
        wanted = [("outputs", OutputRequest(name, binary)) for name in specs]
    else:
        wanted = []
        for index, (name, item) in enumerate(_items(value, "outputs", limits)):
            path = f"outputs[{index}]"
            if name not in specs:
                raise InvalidRequest(
                    f"{path}.name: the model has no output {quote(name)}, its outputs are {_names(specs)}",
                    field=f"{path}.name",
                )
            parameters = _tensor_parameters(item, path, limits)
            own = _flag(parameters, "binary_data", f"{path}.") if "binary_data" in parameters else binary
            top = _count(parameters, "classification", f"{path}.", limits.max_elements) or 0
            if top and specs[name].datatype in ("BYTES", "BOOL", "BF16"):
                raise InvalidRequest(
                    f"{path}.parameters.classification: output {name!r} is {specs[name].datatype}, not scores",
                    field=f"{path}.parameters.classification",
                )
            wanted.append((path, OutputRequest(name, own, top)))
    for path, output in wanted:
        datatype = DATATYPES[specs[output.name].datatype]
        if not (datatype.in_json or output.binary or output.classification):
            raise InvalidRequest(
                f"{path}: output {output.name!r} is {datatype.name}, which cannot be sent as JSON; "
                "ask for it with binary_data or binary_data_output",
                field=path,
            )
    return tuple(output for _, output in wanted)


def _raw(body: bytes, contract: Contract, limits: Limits, model: str) -> InferRequest:
    """A raw body: batch of one, at most one free axis, whose length follows from the bytes; all outputs binary."""
    if len(contract.inputs) != 1:
        raise InvalidRequest(
            f"a raw body (header length 0) needs a model with one input, {model!r} has {len(contract.inputs)}",
            field="Inference-Header-Content-Length",
        )
    spec = contract.inputs[0]
    datatype = DATATYPES[spec.datatype]
    dims = list(spec.shape if spec.shape is not None else (-1,))
    if contract.batched:
        dims[0] = 1
    free = [axis for axis, dim in enumerate(dims) if dim == -1]
    if len(free) > 1:
        raise InvalidRequest(
            f"a raw body needs at most one free axis, input {spec.name!r} has shape {tensors.show(dims)}", field="body"
        )
    unit = math.prod(dim for dim in dims if dim != -1) * (datatype.size or 1)
    if free:
        dims[free[0]] = 1 if not datatype.size else len(body) // max(1, unit)
    shape = tensors.check_shape(dims, spec, limits, "body")
    if datatype.size:
        array = tensors.from_binary(memoryview(body), shape, datatype, "body")
    elif math.prod(shape) == 1:
        blob = len(body).to_bytes(4, "little") + body
        array = tensors.from_binary(memoryview(blob), shape, datatype, "body")
    else:
        raise InvalidRequest(
            f"a raw BYTES body is one string, input {spec.name!r} has shape {tensors.show(dims)}", field="body"
        )
    outputs = tuple(OutputRequest(output.name, True) for output in contract.outputs)
    return InferRequest("", {}, {spec.name: array}, outputs, 1)
