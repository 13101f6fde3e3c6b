"""The requests of the load tests are what the protocol's codec reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.oip.limits import Limits
from gateway.oip.request import decode
from gateway.types import Contract, TensorSpec
from loadtests import bodies


@pytest.mark.parametrize("model", ["tiny", "trees", "flights"])
@pytest.mark.parametrize("form", bodies.FORMS)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_codec_reads_the_numbers_and_strings_that_went_in(model: str, form: str, rows: int) -> None:
    for body in bodies.make(model, form, rows, 3):
        specs = tuple(TensorSpec(each.name, each.datatype, (-1, *each.shape[1:])) for each in body.tensors)
        contract = Contract(specs, (TensorSpec("y", "FP32", (-1,)),), batched=True)
        header = body.headers.get("Inference-Header-Content-Length")
        request = decode(body.content, header, contract, Limits(), model)
        assert request.rows == rows
        assert [output.binary for output in request.outputs] == [form != "json"]
        for tensor in body.tensors:
            dtype = object if tensor.datatype == "BYTES" else np.float32
            expected = np.array(tensor.data, dtype).reshape(tensor.shape)
            assert np.array_equal(request.inputs[tensor.name], expected)


def test_the_same_call_gives_the_same_bytes_and_every_body_differs() -> None:
    first, second = (bodies.make("flights", "json", 1, 64) for _ in range(2))
    assert [each.content for each in first] == [each.content for each in second]
    assert len({each.content for each in first}) == 64


def test_numbers_in_json_have_all_their_digits() -> None:
    (body,) = bodies.make("mlp", "json", 1, 1)
    assert len(body.content) > 512 * 18


def test_the_file_for_the_load_generator_holds_lengths_and_bytes(tmp_path: Path) -> None:
    plain, binary = bodies.make("tiny", "json", 1, 1)[0], bodies.make("tiny", "binary", 1, 1)[0]
    bodies.write(tmp_path / "file", [plain, binary])
    assert (tmp_path / "file").read_bytes() == b"%d 0\n%b%d %d\n%b" % (
        *(len(plain.content), plain.content),
        *(len(binary.content), binary.json_length, binary.content),
    )
