"""Fixtures that start real servers; each is ended with its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import Server

REAL = frozenset({"start_server", "server", "pair", "running"})
"""Fixtures that run real processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Try a test with real processes once more where it failed: a busy machine can keep them from their turn.

    It is reported as rerun. What is wrong fails both times.
    """
    for item in items:
        if REAL & set(getattr(item, "fixturenames", ())) or item.get_closest_marker("faults"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """A function ``start_server(models, *options)``; bare models count as quiet at once."""
    servers: list[Server] = []

    def start(models: Path, *options: str, wait: bool = True) -> Server:
        server = Server(models, tmp_path / f"server{len(servers)}", "--quiet-s", "0", *options, wait=wait)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
