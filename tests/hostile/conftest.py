"""A server that the tests of a module share, set so that slow clients are given up after a second."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.onnx_models import build, identity, put
from tests.servers import Server

SHORT = ("--header-timeout-s", "1", "--body-timeout-s", "1", "--idle-timeout-s", "1", "--write-timeout-s", "1")


def widening(times: int) -> bytes:
    """y is x that many times beside itself."""
    repeats = np.array([1, times], np.int64)
    nodes = [helper.make_node("Tile", ["x", "repeats"], ["y"])]
    x, y = (("x", TensorProto.FLOAT, ("N", 4)), ("y", TensorProto.FLOAT, ("N", 4 * times)))
    return build(nodes, [x], [y], {"repeats": repeats})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves `echo`, and `wide` whose replies are much longer than its requests; logs every request."""
    scratch = tmp_path_factory.mktemp("hostile")
    put(scratch / "models", "echo", 1, identity())
    put(scratch / "models", "wide", 1, widening(2000))
    running = Server(scratch / "models", scratch / "server", "--quiet-s", "0", "--access-log", *SHORT)
    yield running
    running.stop()
