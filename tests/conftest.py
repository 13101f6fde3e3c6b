"""How the suite runs, and fixtures that start real servers; each is ended with its test."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import Server

# While tests are collected everything that is made is kept: to look for garbage there takes a tenth of the time.
gc.disable()


def pytest_collection_finish() -> None:
    """Let no collection of garbage go through the thousands of tests themselves: some tests ask for many."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the end of the process find them again: nanobind takes what is left over for a leak."""
    gc.unfreeze()


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
