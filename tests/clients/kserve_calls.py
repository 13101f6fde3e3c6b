"""Run by the environment that has kserve: all calls of its REST client against the URL given, results as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, InferResponse, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

PAIR = np.arange(8, dtype=np.int32).reshape(2, 4)


def request(model: str, arrays: dict[str, tuple[str, np.ndarray]], binary: bool, outputs: Any = None) -> InferRequest:
    inputs = []
    for name, (datatype, array) in arrays.items():
        given = InferInput(name, list(array.shape), datatype)
        given.set_data_from_numpy(array, binary_data=binary)
        inputs.append(given)
    parameters = {"binary_data_output": True} if binary and outputs is None else None
    return InferRequest(model, inputs, request_id="from-kserve", parameters=parameters, request_outputs=outputs)


def told(response: InferResponse) -> dict[str, Any]:
    def plain(array: np.ndarray) -> Any:
        return [value.decode() if isinstance(value, bytes) else value for value in array.ravel().tolist()]

    outputs = {each.name: [each.datatype, list(each.shape), plain(each.as_numpy())] for each in response.outputs}
    return {"id": response.id, "model": response.model_name, "outputs": outputs}


async def refused(call: Awaitable[Any]) -> dict[str, Any]:
    try:
        return {"answered": repr(await call)}
    except httpx.HTTPStatusError as error:
        return {"status": error.response.status_code, "message": str(error)}


async def main(url: str) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    pair = {"a": ("INT32", PAIR), "b": ("INT32", PAIR)}
    words = {"x": ("BYTES", np.array([["plain", "Zürich"]], dtype=object))}
    half = {"x": ("FP16", np.array([[0.5, -2.0]], np.float16))}
    row = {"x": ("FP32", np.ones((1, 29), np.float32))}
    mixed = [RequestedOutput("sum", {"binary_data": True}), RequestedOutput("difference", {"binary_data": False})]
    plain = {"inputs": [{"name": "x", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}]}

    async def infer(model: str, data: Any) -> Any:
        return told(await client.infer(url, data, model_name=model))

    results = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, "tiny"),
        "model_not_ready": await client.is_model_ready(url, "broken"),
        "model_unknown": await client.is_model_ready(url, "absent"),
        "dictionary": await infer("tiny", plain),
        "json": await infer("sum_and_difference", request("sum_and_difference", pair, binary=False)),
        "binary": await infer("sum_and_difference", request("sum_and_difference", pair, binary=True)),
        "mixed": await infer("sum_and_difference", request("sum_and_difference", pair, True, mixed)),
        "words_json": await infer("echo_bytes", request("echo_bytes", words, binary=False)),
        "words_binary": await infer("echo_bytes", request("echo_bytes", words, binary=True)),
        "half_binary": await infer("echo_fp16", request("echo_fp16", half, binary=True)),
        "bad_shape": await refused(client.infer(url, request("tiny", row, binary=False), model_name="tiny")),
        "not_ready": await refused(client.infer(url, request("broken", row, binary=True), model_name="broken")),
        "unknown": await refused(client.infer(url, request("absent", row, binary=True), model_name="absent")),
    }
    await client.close()
    return results


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1]))))
