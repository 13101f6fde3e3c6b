"""Programs of the system: a missing one skips a test for a developer and fails it in CI, which installs them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import programs


def test_a_program_that_is_missing_skips_a_test_for_a_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"wrk is not installed \(Debian package wrk\)"):
        programs.found("wrk")


def test_a_program_that_is_missing_fails_a_test_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="promtool is not installed"):
        programs.found("promtool")


def test_ci_installs_every_program_that_tests_run() -> None:
    script = (Path(__file__).parents[1] / ".ci" / "run").read_text(encoding="utf-8")
    for program, package in programs.PACKAGES.items():
        assert f"needs {program} {package}\n" in script
