"""Right before fast: a burst of requests whose every answer is compared with what onnxruntime alone says."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.oip.datatypes import DATATYPES
from loadtests.bodies import Body
from loadtests.ort_alone import load

RTOL, ATOL = 1e-4, 1e-5
"""A batch may add up floats in another order than a single row; a wrong row or a swapped reply is far outside."""
TIMEOUT_S = 60

Array = NDArray[Any]


class WrongAnswer(Exception):
    """A server answered with an error, or not what the model says."""


class Oracle:
    """What the models say, by running the files of a repository in onnxruntime alone, one request at a time."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._sessions: dict[Path, Any] = {}

    def answer(self, model: str, version: str | None, body: Body) -> dict[str, Array]:
        """Outputs by name for the version that answered (None: the highest)."""
        folder = self._models / model
        version = version or str(max(int(path.name) for path in folder.iterdir() if path.name.isdigit()))
        file = folder / version / "model.onnx"
        if file not in self._sessions:
            self._sessions[file] = load(file)
        session = self._sessions[file]
        feed = {
            tensor.name: np.array(tensor.data, DATATYPES[tensor.datatype].dtype).reshape(tensor.shape)
            for tensor in body.tensors
        }
        names = [node.name for node in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))


def check(address: tuple[str, int], path: str, bodies: Sequence[Body], connections: int, oracle: Oracle | None) -> None:
    """Send bodies over `connections` connections at the same moment, so that a server that batches does, and compare.

    Without an oracle any JSON will do. Raises WrongAnswer.
    """
    model = path.split("/")[3]
    bodies = bodies[: max(1, connections)]
    with ExitStack() as stack:
        links = [stack.enter_context(closing(http.client.HTTPConnection(*address, timeout=TIMEOUT_S))) for _ in bodies]
        for link, body in zip(links, bodies, strict=True):
            link.request("POST", path, body.content, body.headers)
        for index, (link, body) in enumerate(zip(links, bodies, strict=True)):
            reply = link.getresponse()
            content = reply.read()
            if reply.status != 200:
                raise WrongAnswer(f"request {index} to {path} got {reply.status}: {content[:300]!r}")
            json_length = reply.getheader("Inference-Header-Content-Length")
            if oracle is None:
                json.loads(content[: int(json_length or len(content))])
                continue
            document, outputs = decode(content, json_length)
            compare(oracle.answer(model, document.get("model_version"), body), outputs, f"request {index} to {path}")


def decode(content: bytes, json_length: str | None) -> tuple[dict[str, Any], dict[str, Array]]:
    """The JSON of a reply and its outputs as arrays, binary ones from the bytes behind the JSON."""
    at = len(content) if json_length is None else int(json_length)
    document: dict[str, Any] = json.loads(content[:at])
    outputs: dict[str, Array] = {}
    for output in document["outputs"]:
        dtype, shape = DATATYPES[output["datatype"]].dtype, output["shape"]
        if "data" in output:
            outputs[output["name"]] = np.array(output["data"], dtype).reshape(shape)
        else:
            size = output["parameters"]["binary_data_size"]
            outputs[output["name"]] = np.frombuffer(content[at : at + size], dtype).reshape(shape)
            at += size
    return document, outputs


def compare(expected: Mapping[str, Array], got: Mapping[str, Array], what: str) -> None:
    """Raise WrongAnswer where names, shapes or values differ by more than rounding."""
    if expected.keys() != got.keys():
        raise WrongAnswer(f"{what}: outputs {sorted(got)} came, {sorted(expected)} were expected")
    for name, array in expected.items():
        if array.shape != got[name].shape:
            raise WrongAnswer(f"{what}: {name} has shape {got[name].shape}, expected {array.shape}")
        if not np.allclose(array, got[name], RTOL, ATOL):
            worst = float(np.abs(array - got[name]).max())
            raise WrongAnswer(f"{what}: {name} differs from onnxruntime's answer by up to {worst:g}")
