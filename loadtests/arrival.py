"""How long does a new version take from its last byte until it answers, with the settings as they are?

A bare `model.onnx` has to be unchanged for `quiet_s` first; one with a manifest is known to be complete.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from gateway.models.package import add_version
from loadtests.lineup import serve_command, serve_flags, wait_ready
from loadtests.models import write
from loadtests.processes import ROOT, START_S, Server

AIM_S = 5.0
"""Within which a new version is to answer on a machine that does nothing else."""


def main() -> int:
    """Measure and print; 1 where a median is above the aim."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.arrival", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    medians = []
    with tempfile.TemporaryDirectory(prefix="headgate-arrival.") as scratch:
        models = Path(scratch) / "models"
        write(models, ROOT / "examples", ["tiny"])
        (models / "tiny" / "model.toml").unlink()  # without a champion the newest version answers
        command = serve_command(serve_flags(), models, Path(scratch) / "data", workers=1)
        with Server("headgate", command, (), Path(scratch) / "log") as server:
            wait_ready(server, ["tiny"])
            for name, publish in (("a bare model.onnx", _bare), ("with a manifest", _packaged)):
                seconds = [_arrival(server, models, publish) for _ in range(rounds)]
                medians.append(statistics.median(seconds))
                print(f"{name}: {medians[-1]:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), aim {AIM_S:g} s")
    return int(max(medians) > AIM_S)


def _arrival(server: Server, models: Path, publish: Callable[[Path, int], None]) -> float:
    """Seconds from the publishing of the next version until it answers. Raises RuntimeError where it does not."""
    version = 1 + max(int(entry.name) for entry in (models / "tiny").iterdir() if entry.name.isdigit())
    publish(models, version)
    began = time.monotonic()
    while _answering(server) != str(version):
        if time.monotonic() > began + START_S:
            raise RuntimeError(f"version {version} does not answer: {server.last_words()}")
        time.sleep(0.01)
    return time.monotonic() - began


def _bare(models: Path, version: int) -> None:
    (models / "tiny" / str(version)).mkdir()
    shutil.copyfile(models / "tiny" / "1" / "model.onnx", models / "tiny" / str(version) / "model.onnx")


def _packaged(models: Path, version: int) -> None:
    add_version(models, "tiny", models / "tiny" / "1" / "model.onnx", version=version)


def _answering(server: Server) -> str:
    """The version that answers without one in the URL."""
    row = {"name": "x", "shape": [1, 30], "datatype": "FP32", "data": [0.0] * 30}
    with closing(http.client.HTTPConnection(*server.address, timeout=START_S)) as link:
        link.request("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [row]}))
        return str(json.loads(link.getresponse().read())["model_version"])


if __name__ == "__main__":
    raise SystemExit(main())
