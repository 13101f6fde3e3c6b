"""A server process as its users see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.onnx_models import constant_answer, identity, put
from tests.servers import Server

ROW = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2.5, 3, 4]}]}


def test_a_bare_model_is_served_as_unverified(tmp_path: Path, start_server: Callable[..., Server]) -> None:
    put(tmp_path / "models", "echo", 1, identity())
    server = start_server(tmp_path / "models")
    reply = server.infer("echo", ROW)
    assert reply["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.5, 3.0, 4.0]}]
    assert reply["model_version"] == "1"
    assert reply["id"] == reply["parameters"]["prediction_id"]
    assert server.json("GET", "/v2/models/echo")["status"][0]["verified"] is False
    assert server.stop() == 0


def test_a_new_version_folder_is_served_and_a_removed_one_drains(
    tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    models = tmp_path / "models"
    put(models, "m", 1, constant_answer(1))
    server = start_server(models)
    assert server.infer("m", ROW)["outputs"][0]["data"][0] == 1
    two = put(models, "m", 2, constant_answer(2))
    server.wait_for(lambda: server.infer("m", ROW)["model_version"] == "2", 10, "version 2 answers")
    (two / "model.onnx").unlink()
    two.rmdir()
    server.wait_for(lambda: server.infer("m", ROW)["model_version"] == "1", 10, "version 1 answers again")
