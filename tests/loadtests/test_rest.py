"""What a server at rest costs is measured, and what it says is of the server alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests import rest
from loadtests.models import write

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.faults
def test_start_memory_and_rest_of_a_server_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Result: numbers that only a server can have, and a further worker takes little memory: most of it is shared."""
    monkeypatch.setattr(rest, "SETTLE_S", 0.5)
    write(tmp_path / "models", EXAMPLES, list(rest.MODELS))
    found = {}
    for workers in (1, 3):
        (tmp_path / str(workers)).mkdir()
        found[workers] = rest.measure(tmp_path / "models", tmp_path / str(workers), workers, 0.5)
        assert 0.1 < found[workers].cpu_s < 60
        assert 0.1 < found[workers].ready_s < 120
        assert 0 <= found[workers].share < 2
    assert 40 < found[1].mebibytes < found[3].mebibytes
    assert (found[3].mebibytes - found[1].mebibytes) / 2 < 0.2 * found[1].mebibytes
