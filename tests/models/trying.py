"""Trying crafted versions in quarantine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.models.options import SessionOptions
from gateway.models.quarantine import Job

TINY = Path(__file__).parents[2] / "examples" / "tiny"
ENDLESS = 1 << 62
MIB = 1 << 20


def job_for(folder: Path, *, memory_bytes: int = 256 * MIB, batching: bool = True) -> Job:
    """A job for a version folder, under its model's name."""
    version = int(folder.name)
    return Job(str(folder), folder.parent.name, version, SessionOptions(), 64 * MIB, memory_bytes, batching)


def put(tmp_path: Path, model: bytes, golden: Any = None) -> Path:
    """A bare version folder."""
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model)
    if golden is not None:
        (folder / "golden.json").write_text(json.dumps(golden))
    return folder


def wait_for(reached: Callable[[], Any], timeout_s: float = 20) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := reached()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found
