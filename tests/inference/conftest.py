"""As many examples as the property tests of the codecs try, and a journal on and off."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inference.world import World
from tests.oip import conftest

__all__ = ["conftest"]


@pytest.fixture(params=["journal on", "journal off"])
def journal_on_and_off(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes it holds with the journal and without."""
    monkeypatch.setattr(World, "folder", tmp_path / "journal" if request.param == "journal on" else None)
