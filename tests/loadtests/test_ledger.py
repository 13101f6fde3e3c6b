"""The ledger's benchmark runs, and fails by what it is to hold."""

from __future__ import annotations

import pytest

from loadtests import ledger


@pytest.mark.parametrize(
    ("share", "growth_mib", "code"), [(1.0, 64.0, 0), (1.01, 0.0, 1), (0.1, 64.1, 1), (0.1, -5.0, 0)]
)
def test_the_share_of_a_core_and_the_growth_of_memory_are_both_held(share: float, growth_mib: float, code: int) -> None:
    assert ledger.verdict(share, growth_mib) == code


def test_a_small_run_takes_every_event_once(capsys: pytest.CaptureFixture[str]) -> None:
    ledger.main(3000, 2000)
    said = capsys.readouterr().out
    assert "2,000 events" in said
    assert said.splitlines()[-1] in ("held", "BELOW")
