"""Models as ONNX Runtime itself writes them: optimised, and naming every domain it knows, used or not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime as ort

from tests.conformance.protocol import Client
from tests.onnx_models import put
from tests.servers import Server

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_model_that_onnxruntime_optimised_and_saved_is_served(
    tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    original = ROOT / "examples" / "tiny" / "1" / "model.onnx"
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = ort.InferenceSession(original, options, providers=["CPUExecutionProvider"])
    put(tmp_path / "models", "optimised", 1, (tmp_path / "optimised.onnx").read_bytes())
    server = start_server(tmp_path / "models", wait=False)
    server.wait_for(lambda: _outcome(server) != "", 60, "the version is ready or has failed")
    assert _outcome(server) == "version-ready"
    rows = np.random.default_rng(1).standard_normal((3, 30)).astype(np.float32)
    # The control process says so a moment before the worker answers with it.
    server.wait_ready()
    with closing(Client(server.address)) as client:
        answer = client.infer("optimised", {"x": rows}, [("label", "INT64"), ("probabilities", "FP32")], "binary")
    label, probabilities = session.run(["label", "probabilities"], {"x": rows})
    np.testing.assert_array_equal(answer["label"], label)
    np.testing.assert_allclose(answer["probabilities"], probabilities, rtol=1e-5)


def _outcome(server: Server) -> str:
    """How the attempt to load the version ended, "" while it lasts."""
    events = [line.get("event", "") for line in server.log()]
    return next((event for event in events if event in ("version-ready", "version-failed")), "")
