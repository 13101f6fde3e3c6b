"""The onnx package's own node tests, served as models: every operator and every datatype, as JSON and as binary.

A run takes one test for every operator with every combination of types; with ALL_NODE_TESTS=1 in the environment it
takes all of them, which needs some minutes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conformance.node_tests import CARRIED, NodeTest, census, chosen, session
from tests.conformance.protocol import Client, Format, Refused, datatype_of
from tests.servers import Server

EVERYTHING = bool(os.environ.get("ALL_NODE_TESTS"))
SHARDS = 16 if EVERYTHING else 4

RTOL, ATOL = 1e-3, 1e-5
"""As the package's own runner compares, but for an ATOL that float32 sums can hold near zero."""

LONG_SUMS_ATOL = 1e-3
LONG_SUMS = {("", "DFT"), ("", "STFT")}
"""Operators that add up waves of large values to zero."""

FLOATS = ("BF16", "FP16", "FP32", "FP64")

RANDOM = frozenset(f"test_training_dropout{suffix}" for suffix in ("", "_default", "_default_mask", "_mask"))
"""Their answers are drawn anew each time: only shapes and types are compared."""

ONNX_RUNTIME_DIFFERS = frozenset(
    {
        "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
        "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
        "test_maxunpool_export_with_output_shape",
        "test_resize_downsample_scales_cubic_align_corners",
        "test_resize_downsample_scales_linear_align_corners",
    }
)
"""ONNX Runtime itself does not give the answers of the package: the server must give those of ONNX Runtime."""

ONNX_RUNTIME_RAISES = frozenset({"test_attention_4d_diff_heads_mask4d_padded_kv", "test_convinteger_with_padding"})
"""ONNX Runtime loads them and raises on their inputs: the server must answer 500 and name the model."""


def selected() -> tuple[NodeTest, ...]:
    served = census().served
    return served if EVERYTHING else chosen(served)


def test_every_node_test_is_served_or_skipped_for_a_reason() -> None:
    served, skipped = census()
    totals = {reason: len(names) for reason, names in skipped.items()}
    print(f"{len(served)} can be served; skipped: {totals}")
    assert totals.keys() == {
        "ONNX Runtime does not load it",
        "sequences and optionals: the protocol carries only tensors",
        "types of 8 and fewer bits that the protocol has no datatype for",
    }
    assert len(served) + sum(totals.values()) == 1765
    assert len(served) >= 1400
    assert {test.name for test in served} >= RANDOM | ONNX_RUNTIME_DIFFERS | ONNX_RUNTIME_RAISES


def test_at_least_300_tests_are_chosen_with_every_operator_and_every_datatype() -> None:
    tests, served = chosen(census().served), census().served
    assert len(tests) >= 300
    assert {op for test in tests for op in test.operators} == {op for test in served for op in test.operators}
    assert {type_ for test in tests for _, type_ in (*test.inputs, *test.outputs)} == CARRIED


@pytest.mark.slow(8)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_served_answers_are_the_expected_ones(shard: int, tmp_path: Path) -> None:
    tests = {_model_name(index, test): test for index, test in enumerate(selected()) if index % SHARDS == shard}
    for model, test in tests.items():
        folder = tmp_path / "models" / model / "1"
        folder.mkdir(parents=True)
        shutil.copy(test.path, folder / "model.onnx")
    server = Server(tmp_path / "models", tmp_path / "server", "--quiet-s", "0", wait=False)
    try:
        server.wait_ready(500)
        client = Client(server.address)
        wrong = {test.name: said for model, test in tests.items() if (said := _difference(client, model, test))}
        client.close()
    finally:
        assert server.stop() == 0
    assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong.items())


def _model_name(index: int, test: NodeTest) -> str:
    return test.name if len(test.name) <= 64 else f"node_{index}"


def _difference(client: Client, model: str, test: NodeTest) -> str:
    """What is wrong with the answers to all data sets of a test, "" where nothing is."""
    compared = 0
    for inputs, expected in test.data_sets():
        try:
            _check(client, model, test, inputs, expected)
        except (AssertionError, Refused) as error:
            return " ".join(str(error).split())[:400]
        compared += 1
    return "" if compared else "it has no data sets"


def _check(
    client: Client, model: str, test: NodeTest, inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> None:
    if test.name in ONNX_RUNTIME_RAISES:
        for format_ in ("json", "binary"):
            with pytest.raises(Refused) as caught:
                _ask(client, model, inputs, expected, format_)
            assert caught.value.status == 500
            assert repr(model) in caught.value.message
        return
    if test.name in ONNX_RUNTIME_DIFFERS:
        names = [name for name, _ in test.outputs]
        expected = dict(zip(names, session(test.path).run(names, inputs), strict=True))
    binary = _ask(client, model, inputs, expected, "binary")
    json = _ask(client, model, inputs, expected, "json")
    for name, array in expected.items():
        for got in (binary[name], json[name]):
            assert datatype_of(got) == datatype_of(array), f"{name}: {datatype_of(got)}, not {datatype_of(array)}"
            assert got.shape == array.shape, f"{name}: shape {got.shape}, not {array.shape}"
        if test.name in RANDOM:
            continue
        # numpy takes a NaN of bfloat16 for unequal to itself.
        wide = np.float32 if datatype_of(array) == "BF16" else array.dtype
        want, got, again = (each.astype(wide) for each in (array, binary[name], json[name]))
        if datatype_of(array) in FLOATS:
            atol = LONG_SUMS_ATOL if test.operators & LONG_SUMS else ATOL
            np.testing.assert_allclose(got, want, rtol=RTOL, atol=atol)
        else:
            np.testing.assert_array_equal(got, want)
        # The same run twice: JSON must lose nothing, not even a bit.
        np.testing.assert_array_equal(again, got)


def _ask(
    client: Client, model: str, inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray], format_: Format
) -> dict[str, np.ndarray]:
    outputs = [(name, datatype_of(array)) for name, array in expected.items()]
    return client.infer(model, inputs, outputs, format_)
