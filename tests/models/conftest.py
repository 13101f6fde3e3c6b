"""What tests of trials share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.models.trying import wait_for
from tests.processes import nurseries


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """After a test there are no more nurseries and descriptors than before it."""
    # One that was told to end, or was idle for long, may be gone.
    before, files = nurseries(os.getpid()), len(os.listdir("/proc/self/fd"))
    yield
    wait_for(lambda: len(nurseries(os.getpid())) <= max(1, len(before)))
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= files)
