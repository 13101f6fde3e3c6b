"""Run by the environment that has open-inference-openapi: its calls against the URL given, results as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from open_inference.openapi.client import AsyncOpenInferenceClient, OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError
from open_inference.openapi.types.inference_request import InferenceRequest


def request(name: str, shape: list[int], datatype: str, data: list[Any], **more: Any) -> InferenceRequest:
    return InferenceRequest(inputs=[{"name": name, "shape": shape, "datatype": datatype, "data": data}], **more)


def refused(call: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    try:
        return {"answered": repr(call(*args, **kwargs))}
    except ApiError as error:
        return {"raised": type(error).__name__, "status": error.status_code, "body": error.body}


async def asynchronously(url: str, row: InferenceRequest) -> Any:
    client = AsyncOpenInferenceClient(base_url=url)
    await client.check_server_liveness()
    return json.loads((await client.model_infer("tiny", request=row)).json())


def main(url: str) -> dict[str, Any]:
    client = OpenInferenceClient(base_url=url)
    row = request("x", [1, 30], "FP32", [0.5] * 30, id="from-openapi", outputs=[{"name": "probabilities"}])
    nested = request("x", [2, 2], "FP32", [[1.5, 2.5], [3.5, 4.5]])
    words = request("x", [1, 2], "BYTES", ["plain", "Zürich"])
    whole = request("x", [1, 2], "INT64", [1, 2])
    short = request("x", [1, 29], "FP32", [0.5] * 29)
    return {
        "live": client.check_server_liveness(),
        "ready": client.check_server_readiness(),
        "model_ready": client.check_model_readiness("tiny"),
        "version_ready": client.check_model_version_readiness("flights", "2"),
        "model_not_ready": refused(client.check_model_readiness, "broken"),
        "model_unknown": refused(client.check_model_readiness, "absent"),
        "version_unknown": refused(client.check_model_version_readiness, "tiny", "9"),
        "server": json.loads(client.read_server_metadata().json()),
        "model": json.loads(client.read_model_metadata("flights").json()),
        "version": json.loads(client.read_model_version_metadata("flights", "2").json()),
        "metadata_unknown": refused(client.read_model_metadata, "absent"),
        "row": json.loads(client.model_infer("tiny", request=row).json()),
        "version_row": json.loads(client.model_version_infer("tiny", "1", request=row).json()),
        "asynchronous": asyncio.run(asynchronously(url, row)),
        "nested": json.loads(client.model_infer("echo_fp32", request=nested).json()),
        "words": json.loads(client.model_infer("echo_bytes", request=words).json()),
        "whole": refused(client.model_infer, "echo_int64", request=whole),
        "short": refused(client.model_infer, "tiny", request=short),
        "unknown": refused(client.model_infer, "absent", request=row),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
