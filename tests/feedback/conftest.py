"""A Desk for each test, closed with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.feedback.app import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """The application over scratch folders."""
    made = Desk(tmp_path)
    yield made
    made.feedback.close()
