"""What tests fetch when they need it: where it cannot be had, a developer goes on without, and CI does not."""

from __future__ import annotations

import pytest

from tests.clients.ondemand import unavailable


@pytest.mark.parametrize(("ci", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_what_cannot_be_had_fails_in_ci_and_is_skipped_elsewhere(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="there is no compiler"):
        unavailable("there is no compiler")
