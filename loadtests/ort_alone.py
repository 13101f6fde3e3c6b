"""onnxruntime and nothing else: how many rows a second one session gives in a tight loop.

``python -m loadtests.ort_alone MODEL.onnx --batches 1,16,64 --seconds 2`` prints JSON, rows per second by batch size.
For models whose inputs are all FP32. The batches rotate over several blocks of rows, as a server's would: a block
that comes again and again is learnt by the branch predictor, and boosted trees then look four times as fast.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

MEMORY_BYTES = 32 << 20
MAX_BLOCKS = 64


def load(model: Path, threads: int = 1) -> ort.InferenceSession:
    """A session for a file; `threads` inside one operator."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return ort.InferenceSession(str(model), options)


def rows_per_second(session: ort.InferenceSession, batch: int, seconds: float) -> float:
    """Run batches of `batch` rows for about `seconds`."""
    names = [node.name for node in session.get_outputs()]
    feeds = _feeds(session, batch)
    session.run(names, feeds[0])
    runs = 0
    began = time.perf_counter()
    ends = began + seconds
    while (now := time.perf_counter()) < ends or not runs:
        session.run(names, feeds[runs % len(feeds)])
        runs += 1
    return runs * batch / (now - began)


def _feeds(session: ort.InferenceSession, batch: int) -> list[dict[str, NDArray[np.float32]]]:
    """Blocks of normal numbers, as many as fit a bound of memory."""
    random = np.random.default_rng(7)
    shapes = {
        node.name: (batch, *(dim if isinstance(dim, int) else 1 for dim in node.shape[1:]))
        for node in session.get_inputs()
    }
    size = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    blocks = max(2, min(MAX_BLOCKS, MEMORY_BYTES // size))
    return [{name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()} for _ in range(blocks)]


def main(argv: Sequence[str] | None = None) -> int:
    """Print rows per second for each batch size as one JSON object."""
    parser = argparse.ArgumentParser(description="Rows per second of onnxruntime alone.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--batches", default="1", help="batch sizes, separated by commas")
    parser.add_argument("--threads", type=int, default=1, help="threads inside one operator")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each batch size")
    args = parser.parse_args(argv)
    session = load(args.model, args.threads)
    print(json.dumps({each: rows_per_second(session, int(each), args.seconds) for each in args.batches.split(",")}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
