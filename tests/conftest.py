"""How the suite runs, and fixtures that start real servers; each is ended with its test."""

from __future__ import annotations

import atexit
import gc
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from operator import itemgetter
from pathlib import Path

import pytest

from gateway.models import package
from gateway.models.quarantine import Quarantine
from tests.servers import Server

if "PYTEST_XDIST_WORKER" in os.environ:
    # When its results are told, there is nothing in it that seconds should be spent on to take it apart. What is
    # registered first is done last.
    atexit.register(os._exit, 0)

# While tests are collected everything that is made is kept: to look for garbage there takes a tenth of the time.
gc.disable()


# Last, so that what is deselected is gone.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, the slowest first, each where the least is to be done before it.

    xdist deals out equal runs of neighbours, from the first on, where they are not equal the longer ones last. Who has
    done with its own takes from the ends of others, but nobody takes what is already next behind a long test.
    """
    shares: list[list[pytest.Item]] = [[] for _ in range(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))]
    if len(shares) == 1:
        return
    seconds: defaultdict[Path, float] = defaultdict(float)
    files: defaultdict[Path, list[pytest.Item]] = defaultdict(list)
    for item in items:
        files[item.path].append(item)
        if mark := item.get_closest_marker("slow"):
            seconds[item.path] += mark.args[0]
    filled = [0.0] * len(shares)
    for path, needed in sorted(seconds.items(), key=itemgetter(1), reverse=True):
        least = filled.index(min(filled))
        filled[least] += needed
        shares[least] += files.pop(path)
    others = iter([item for file in files.values() for item in file])
    left = len(items)
    for index, share in enumerate(shares):
        share.extend(islice(others, max(0, left // (len(shares) - index) - len(share))))
        left -= len(share)
    items[:] = [item for share in (*shares, others) for item in share]


def pytest_collection_finish() -> None:
    """Let no collection of garbage go through the thousands of tests themselves: some tests ask for many.

    With all that frozen, what a test makes is soon a quarter of what is left: each tenth collection is a full one.
    """
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    # The very end of the process finds them again: nanobind takes what is left over for a leak.
    atexit.register(gc.unfreeze)


@pytest.fixture(scope="session")
def _one_nursery() -> Iterator[None]:
    """Let versions that are added in this process be tried by one nursery: each add would start one, and end it."""
    with closing(Quarantine()) as quarantine, pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "try_version", quarantine.try_version)
        yield


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
