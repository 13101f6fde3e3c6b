"""The whole gateway as one ASGI application: it loads, answers, changes and ends as `headgate serve` does."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from gateway import asgi
from gateway.errors import SettingError
from gateway.server import hold
from gateway.settings import Settings
from tests.onnx_models import constant_answer, identity, put

ROW = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2.5, 3, 4]}]}
START_S = 60.0


async def wait_for(reached: Callable[[], Awaitable[bool]], what: str) -> None:
    """Poll until it is so."""
    deadline = time.monotonic() + START_S
    while not await reached():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


def test_it_does_not_share_its_data_folder(tmp_path: Path) -> None:
    settings = Settings(models=tmp_path / "models", data=tmp_path / "data")
    lock = hold(settings)
    with pytest.raises(SettingError, match="is in use by another server"):
        asgi.create(settings)
    os.close(lock)


def test_it_loads_answers_changes_and_ends(tmp_path: Path) -> None:
    """1. It starts with one model. 2. A second version is put beside it. 3. The model is unloaded. 4. It ends.

    Result: each is seen from outside, in the shapes of the protocol, and nothing is left running.
    """
    put(tmp_path / "models", "m", 1, identity())
    (tmp_path / "data").mkdir()
    app = asgi.create(Settings(models=tmp_path / "models", data=tmp_path / "data", quiet_s=0, poll_s=0.2))

    async def converse(client: httpx.AsyncClient) -> None:
        async def ready() -> bool:
            return (await client.get("/v2/health/ready")).status_code == 200

        async def version() -> str:
            return str((await client.post("/v2/models/m/infer", json=ROW)).json().get("model_version"))

        async def is_two() -> bool:
            return await version() == "2"

        await wait_for(ready, "it is ready")
        reply = await client.post("/v2/models/m/infer", json=ROW, headers={"X-Request-Id": "mine"})
        assert reply.status_code == 200
        assert reply.json()["outputs"][0]["data"] == [1, 2.5, 3, 4]
        assert reply.headers["x-request-id"] == "mine"
        assert reply.headers["headgate-prediction-id"] == reply.json()["parameters"]["prediction_id"]
        for path, body, status, code in (
            ("/v2/models/m/infer", {"inputs": []}, 400, "invalid-request"),
            ("/v2/models/none/infer", ROW, 404, "unknown-model"),
            ("/v2/repository/models/none/load", None, 404, "unknown-model"),
        ):
            reply = await client.post(path, json=body)
            assert (reply.status_code, reply.json()["code"]) == (status, code)
        put(tmp_path / "models", "m", 2, constant_answer(7))
        await wait_for(is_two, "version 2 answers")
        assert (await client.post("/v2/repository/models/m/unload")).status_code == 200
        reply = await client.post("/v2/models/m/infer", json=ROW)
        assert (reply.status_code, reply.json()["code"]) == (503, "not-ready")
        metrics = (await client.get("/metrics")).text
        assert 'headgate_http_requests_total{route="/v2/models/{model}/infer",status="400"} 1.0' in metrics

    async def main() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gate.example") as client:
            async with app.router.lifespan_context(app):
                await converse(client)
            reply = await client.get("/v2/health/ready")
            assert (reply.status_code, reply.json()["error"]) == (503, "the server is shutting down")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
