"""Headgate: serve versioned ONNX models, keep every prediction, and move traffic between versions safely."""

import os

# onnxruntime reads this once, when it is first imported, and remembers it for the life of the process.
# Every module that imports onnxruntime lives in this package, so this line always runs before it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# numpy's BLAS would start a thread for every core in every process: they would compete with the workers, and one in the
# supervisor takes signals that are meant for its only other thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
