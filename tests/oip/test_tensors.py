"""Tensors between the wire and arrays, held against numpy and tritonclient."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from gateway.errors import InvalidRequest
from gateway.oip import tensors
from gateway.oip.datatypes import DATATYPES, nonfinite_count
from gateway.oip.limits import Limits
from gateway.types import Array, TensorSpec
from tests.oip.arrays import IN_JSON, SHAPES, WHOLE, arrays, same, values

WRONG: dict[str, list[Any]] = {
    **dict.fromkeys(WHOLE, [None, True, 1.0, "1", [1], {}]),
    "BOOL": [None, 0, 1, 1.0, "true", [True], {}],
    "FP32": [True, "1", [1.0], {}],
    "FP64": [False, "nan", [1.0], {}],
    "BYTES": [None, 1, True, 1.5, ["a"], {}],
}


def refused(data: Any, shape: tuple[int, ...], datatype: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        tensors.from_json(data, shape, DATATYPES[datatype], "data")
    return caught.value


@pytest.mark.parametrize("datatype", IN_JSON)
@given(data=st.data())
def test_nested_and_flat_json_give_the_same_array(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    expected = np.where(np.isfinite(array), array, np.nan).astype(array.dtype) if datatype.startswith("FP") else array
    for flat in (True, False):
        sent = json.loads(json.dumps(values(array, flat=flat)))
        if sent is None:
            continue  # null stands bare for nothing; a scalar NaN is sent as a list
        read = tensors.from_json(sent, array.shape, DATATYPES[datatype], "data")
        assert read.shape == array.shape
        assert read.dtype == array.dtype
        assert read.flags.c_contiguous
        assert np.array_equal(read, expected, equal_nan=datatype.startswith("FP"))


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_binary_data_is_every_bit_of_the_array(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    row = DATATYPES[datatype]
    blob = tensors.to_binary(array, row)
    if datatype == "BYTES":
        strings = np.array([text.encode() for text in array.ravel()], dtype=object)
        assert blob == (serialize_byte_tensor(strings).item() if strings.size else b"")
        assert [text.decode() for text in deserialize_bytes_tensor(blob)] == array.ravel().tolist()
    else:
        assert blob == array.astype(row.dtype.newbyteorder("<")).tobytes()
    body = bytearray(b"x" + blob)
    read = tensors.from_binary(memoryview(body)[1:], array.shape, row, "data")
    body[:] = bytes(len(body))
    assert same(read, array), "the array must not share the body's memory"
    assert read.flags.c_contiguous
    assert read.flags.aligned
    assert read.flags.writeable


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_binary_data_of_any_other_length_is_refused(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    row = DATATYPES[datatype]
    blob = tensors.to_binary(array, row)
    cut = data.draw(st.integers(0, len(blob)))
    more = data.draw(st.binary(min_size=1, max_size=9))
    for wrong in (blob[:cut], blob + more):
        if wrong == blob:
            continue
        with pytest.raises(InvalidRequest) as caught:
            tensors.from_binary(memoryview(wrong), array.shape, row, "there")
        assert caught.value.field == "there"


@given(st.binary(max_size=40), SHAPES, st.sampled_from(sorted(DATATYPES)))
def test_random_binary_data_gives_its_own_bytes_back_or_is_refused(
    blob: bytes, shape: tuple[int, ...], datatype: str
) -> None:
    row = DATATYPES[datatype]
    try:
        array = tensors.from_binary(memoryview(blob), shape, row, "there")
    except InvalidRequest as error:
        field = error.field
    else:
        field = "there"
        assert array.shape == shape
        assert tensors.to_binary(array, row) == blob
    assert field == "there"


@pytest.mark.parametrize("datatype", IN_JSON)
@given(data=st.data())
def test_a_wrong_element_is_named_by_its_place(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    assume(array.size > 0)
    index = data.draw(st.integers(0, array.size - 1))
    wrong = data.draw(st.sampled_from(WRONG[datatype]))
    flat = values(array, flat=True)
    flat[index] = wrong
    if index or not isinstance(wrong, list):
        assert refused(flat, array.shape, datatype).field == f"data[{index}]"
    if array.ndim:
        nested = values(array, flat=False)
        place = [int(at) for at in np.unravel_index(index, array.shape)]
        rows = nested
        for at in place[:-1]:
            rows = rows[at]
        rows[place[-1]] = wrong
        error = refused(nested, array.shape, datatype)
        if not (isinstance(wrong, list) and place == [0]):
            assert error.field == "data" + "".join(f"[{at}]" for at in place)


@pytest.mark.parametrize("datatype", IN_JSON)
@given(data=st.data())
def test_data_of_any_other_size_is_refused(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    flat = values(array, flat=True)
    wrong = data.draw(st.sampled_from([flat[:-1], flat + flat[:1] * 2, [*flat, "x"]]))
    if len(wrong) != array.size:
        error = refused(wrong, array.shape, datatype)
        assert error.field == "data"
        assert f"holds {len(wrong)} elements, but shape {tensors.show(array.shape)} needs {array.size}" in error.message


@given(arrays("INT64", st.lists(st.integers(0, 3), min_size=2, max_size=4).map(tuple)), st.data())
def test_lists_nested_unlike_the_shape_are_refused(array: Array, data: st.DataObject) -> None:
    other = data.draw(st.permutations(array.shape).map(tuple))
    assume(other != array.shape)
    nested = array.tolist()
    # Without elements two shapes may look alike, and an empty list is the flat form of every empty tensor.
    if nested == [] or nested == np.zeros(other).tolist():
        assert tensors.from_json(nested, other, DATATYPES["INT64"], "data").shape == other
        return
    assert "nested unlike its shape" in refused(nested, other, "INT64").message


@pytest.mark.parametrize("datatype", WHOLE)
def test_integers_fit_exactly(datatype: str) -> None:
    info = np.iinfo(DATATYPES[datatype].dtype)
    low, high = int(info.min), int(info.max)
    assert tensors.from_json([low, high], (2,), DATATYPES[datatype], "data").tolist() == [low, high]
    for beyond in (low - 1, high + 1):
        error = refused([0, beyond], (2,), datatype)
        assert error.field == "data[1]"
        assert f"does not fit {datatype}" in error.message


def test_floats_fit_where_the_nearest_float_is_finite() -> None:
    largest = float(np.finfo(np.float32).max)
    assert tensors.from_json([largest, -largest], (2,), DATATYPES["FP32"], "data").tolist() == [largest, -largest]
    tiny = tensors.from_json([1e-50, 1e-45], (2,), DATATYPES["FP32"], "data")
    assert tiny.tolist() == [0.0, float(np.float32(1e-45))]
    for beyond in (3.5e38, -3.5e38, 1.7e308):
        assert refused([0, beyond], (2,), "FP32").field == "data[1]"
    assert tensors.from_json([1.7e308], (1,), DATATYPES["FP64"], "data").tolist() == [1.7e308]


def test_negative_zero_and_denormals_survive_json() -> None:
    sent = [-0.0, 5e-324, float(np.float32(1e-45))]
    read = tensors.from_json(sent, (3,), DATATYPES["FP64"], "data")
    assert read.tobytes() == np.array(sent, "<f8").tobytes()


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_is_refused_as_json(datatype: str) -> None:
    assert "binary tensor format" in refused([1.0], (1,), datatype).message


@given(
    st.lists(
        st.integers(-3, 8) | st.sampled_from([1 << 31, 1 << 60, 1 << 64]) | st.booleans() | st.floats(), max_size=10
    ),
    st.none() | st.lists(st.sampled_from([-1, 0, 1, 2, 3]), max_size=10).map(tuple),
)
def test_a_shape_is_taken_exactly_where_the_rules_allow_it(shape: list[Any], contract: tuple[int, ...] | None) -> None:
    limits = Limits(max_elements=100, max_rank=8)
    allowed = (
        len(shape) <= 8
        and all(type(dim) is int and 0 <= dim <= 100 for dim in shape)
        and math.prod(shape) <= 100
        and (contract is None or len(contract) == len(shape))
        and all(want in (-1, got) for want, got in zip(contract or shape, shape, strict=False))
    )
    spec = TensorSpec("x", "FP32", contract)
    if allowed:
        assert tensors.check_shape(shape, spec, limits, "shape") == tuple(shape)
        return
    with pytest.raises(InvalidRequest) as caught:
        tensors.check_shape(shape, spec, limits, "shape")
    assert caught.value.field is not None
    assert caught.value.field.startswith("shape")


@given(arrays("BF16"), arrays("FP16"), arrays("FP32"), arrays("FP64"))
def test_nonfinite_values_are_counted_in_every_float_datatype(
    bf16: Array, fp16: Array, fp32: Array, fp64: Array
) -> None:
    widened = (bf16.astype(np.uint32) << 16).view(np.float32)
    assert nonfinite_count(bf16, "BF16") == int((~np.isfinite(widened)).sum())
    for array, name in ((fp16, "FP16"), (fp32, "FP32"), (fp64, "FP64")):
        assert nonfinite_count(array, name) == sum(not math.isfinite(value) for value in array.ravel().tolist())
