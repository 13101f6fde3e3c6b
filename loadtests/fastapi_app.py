"""FastAPI + onnxruntime as most teams write it: pydantic models in, one `session.run` per request, a dict out.

``python -m loadtests.fastapi_app MODELS`` serves every ``MODELS/<name>/<version>/model.onnx``, the highest version of
each, for requests of float tensors. It runs in an environment of its own (loadtests/environments.py).
"""

# Its packages are in that environment, which the type checker does not see.
# mypy: disable-error-code="import-not-found,untyped-decorator,misc"

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from loadtests.echo import serve


class InputTensor(BaseModel):
    """One input of the Open Inference Protocol."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferRequest(BaseModel):
    """The body of an infer call."""

    id: str | None = None
    inputs: list[InputTensor]


DATATYPES = {"tensor(float)": "FP32", "tensor(int64)": "INT64"}


def load(models: Path) -> dict[str, onnxruntime.InferenceSession]:
    """A session of one thread for the highest version of every model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    newest: dict[str, Path] = {}
    for file in sorted(models.glob("*/*/model.onnx"), key=lambda path: int(path.parent.name)):
        newest[file.parent.parent.name] = file
    return {name: onnxruntime.InferenceSession(str(file), options) for name, file in newest.items()}


def build(models: Path) -> FastAPI:
    """The application."""
    sessions = load(models)
    app = FastAPI()

    @app.post("/v2/models/{name}/infer")
    async def infer(name: str, request: InferRequest) -> dict[str, Any]:
        session = sessions.get(name)
        if session is None:
            raise HTTPException(404, f"unknown model {name!r}")
        feed = {each.name: np.array(each.data, np.float32).reshape(each.shape) for each in request.inputs}
        outputs = session.run(None, feed)
        return {
            "model_name": name,
            "outputs": [
                {
                    "name": node.name,
                    "datatype": DATATYPES[node.type],
                    "shape": list(array.shape),
                    "data": array.ravel().tolist(),
                }
                for node, array in zip(session.get_outputs(), outputs, strict=True)
            ],
        }

    return app


if __name__ == "__main__":
    serve("FastAPI", build(Path(sys.argv[1])))
