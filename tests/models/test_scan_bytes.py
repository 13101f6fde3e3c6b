"""The scan of a model file: what is no model, or no well-formed one."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.models.scan import scan
from tests.models.bad_models import (
    block,
    model,
    number,
    varint,
    weights,
    wire_model,
    wire_tensor,
)
from tests.models.scanning import refusal, report

# Files that are no ONNX model


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"\x18\x00\x00\x00ORTM" + bytes(64), "flatbuffer format of ONNX Runtime"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(64), "TensorFlow Lite"),
        (b"\x80\x04\x95" + bytes(64), "Python pickle"),
        (b"PK\x03\x04" + bytes(64), "zip archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b"GGUF" + bytes(64), "GGUF"),
        (b"\x1f\x8b\x08" + bytes(64), "gzip"),
        (b"\x7fELF" + bytes(64), "executable"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b'{"learner": {}}', "JSON"),
        (b'\x40\x00\x00\x00\x00\x00\x00\x00{"w":', "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_another_kind_of_file_is_refused_and_told_what_it_looks_like(data: bytes, words: str) -> None:
    message = refusal(data)
    assert message.startswith("The model file is not an ONNX model: it ")
    assert words in message


def test_a_model_that_the_runtime_would_take_for_its_own_format_is_refused() -> None:
    """The runtime decides by the bytes 4 to 7 alone, and these are a valid model besides."""
    crafted = model()
    crafted.producer_name = "ORTM"
    assert crafted.SerializeToString()[4:8] == b"ORTM"
    assert "flatbuffer format of ONNX Runtime" in refusal(crafted)


def test_a_model_without_a_graph_is_refused() -> None:
    assert refusal(number(1, 8)) == "The model file is not an ONNX model: it holds no graph."


@pytest.mark.parametrize("version", [b"", number(1, 0), number(1, -3)])
def test_a_model_without_an_ir_version_is_refused(version: bytes) -> None:
    assert refusal(version + block(7, b"")) == "The model file is not an ONNX model: it names no IR version."


def test_a_serialised_tensor_is_refused() -> None:
    refusal(weights().SerializeToString())


# Bytes that are not well-formed


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (number(1, 1)[:1] + b"\x80" * 10 + b"\x01", "longer than 10 bytes"),
        (number(1, 1)[:1] + b"\xff" * 11, "longer than 10 bytes"),
        (b"\x08\x80", "cut off"),
        (b"\x80", "cut off"),
        (b"\x3a", "cut off"),
        (b"\x3a\x05abc", "runs past the end"),
        (b"\x3a" + varint(2**31) + b"abc", "runs past the end"),
        (b"\x3a" + varint(2**63) + b"abc", "runs past the end"),
        (b"\x99\x06" + bytes(7), "runs past the end"),
        (b"\x9d\x06" + bytes(3), "runs past the end"),
        (number(7, 1), "field 7 at byte"),
        (block(1, b"\x08"), "field 1 at byte"),
        (block(5, b"\x08"), "field 5 at byte"),
        (b"\x3d" + bytes(4), "is stored as 4 bytes"),
        (b"\xa3\x06\xa4\x06", "a group"),
        (b"\xa4\x06", "the end of a group"),
        (b"\x0e", "type 6"),
        (b"\x0f", "type 7"),
        (b"\x00\x00", "impossible number 0"),
        (varint((1 << 35) | 8) + b"\x01", "impossible number"),
    ],
)
def test_malformed_bytes_are_refused(tail: bytes, words: str) -> None:
    message = refusal(model().SerializeToString() + tail)
    assert message.startswith("The model file is not a well-formed ONNX model: ")
    assert words in message


def test_a_number_of_a_packed_field_that_is_cut_off_is_refused() -> None:
    assert "cut off" in refusal(wire_tensor("w", number(1, 1), number(2, 6), block(5, b"\x80")))
    assert "cut off" in refusal(wire_tensor("w", block(1, b"\x80"), number(2, 6)))


def test_a_long_number_within_a_run_of_integers_is_refused() -> None:
    run = number(8, 1) * 3 + number(8, 1)[:1] + b"\x80" * 10 + b"\x01"
    assert "longer than 10 bytes" in refusal(wire_model(block(1, block(4, b"Scaler") + block(5, run))))


def test_fields_that_later_releases_may_add_are_passed_over() -> None:
    unknown = number(100, 7) + block(101, b"later") + b"\xb1\x06" + bytes(8) + b"\xb5\x06" + bytes(4)
    node = block(1, block(4, b"Relu") + unknown)
    tensor = block(5, number(1, 1) + number(2, 1) + block(9, bytes(4)) + unknown)
    seen = report(wire_model(node + tensor + unknown, unknown))
    assert (seen.node_count, seen.initializer_bytes) == (1, 4)


def test_an_input_with_two_types_is_refused() -> None:
    both = block(1, number(1, 1)) + block(4, b"")
    crafted = wire_model(block(11, block(1, b"x") + block(2, both)))
    assert refusal(crafted) == "The input 'x' has several types at once."


def test_any_buffer_of_bytes_can_be_scanned() -> None:
    data = model().SerializeToString()
    assert scan(memoryview(data)) == scan(data) == scan(memoryview(np.frombuffer(data, np.int8)))
