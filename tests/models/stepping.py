"""A lifecycle that is stepped by hand, and what its loader says."""

from __future__ import annotations

from gateway.errors import LoadRejected
from tests.models.fakes import FakeLoader, Lifecycle

BROKEN = LoadRejected("it is broken")


def serving(*versions: int, loader: FakeLoader | None = None) -> Lifecycle:
    """A lifecycle in which these versions were found and, as far as the rule wants them, serve."""
    life = Lifecycle(loader)
    life.put(*versions)
    life.settle()
    return life
