"""A repository with an identity model, and servers of two workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.onnx_models import identity, put
from tests.servers import Server

pytest.register_assert_rewrite("tests.faults.watch")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """`echo` gives back what it gets."""
    put(tmp_path / "models", "echo", 1, identity())
    return tmp_path / "models"


@pytest.fixture
def pair(models: Path, start_server: Callable[..., Server]) -> Callable[..., Server]:
    """A function that starts a server of two workers with further options."""
    return lambda *options: start_server(models, "--workers", "2", *options)
