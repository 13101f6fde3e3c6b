"""Programs of the system that some tests run, by the Debian packages that bring them (.ci/run installs those)."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "chromium": "chromium",
    "wrk": "wrk",
}
"""promtool has a package of its own from Debian 13 on."""


def found(program: str) -> str:
    """The path of a program; where it is missing, the test does not run."""
    return shutil.which(program) or missing(f"{program} is not installed (Debian package {PACKAGES[program]})")


def missing(reason: str) -> NoReturn:
    """Skip the test, as a developer may not have everything; fail it in CI, where a skipped test would go unnoticed."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
