"""A server that the tests of a module share, set so that slow clients are given up after a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.onnx_models import identity, put
from tests.servers import Server

SHORT = ("--header-timeout-s", "1", "--body-timeout-s", "1", "--idle-timeout-s", "1", "--write-timeout-s", "1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves `echo`, and logs every request."""
    scratch = tmp_path_factory.mktemp("hostile")
    put(scratch / "models", "echo", 1, identity())
    running = Server(scratch / "models", scratch / "server", "--quiet-s", "0", "--access-log", *SHORT)
    yield running
    running.stop()
