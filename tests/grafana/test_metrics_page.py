"""docs/metrics.md names what a running gateway exposes, all of it and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.grafana import page

PAGE = page.PATH.read_text(encoding="utf-8")


@pytest.mark.slow(20)
def test_the_page_is_what_a_running_gateway_exposes(tmp_path: Path) -> None:
    """If this fails, run `python -m tests.grafana.page` and read what it changed in docs/metrics.md."""
    if all([shutil.which(name) for name in ("prometheus", "prometheus-alertmanager")]):
        pytest.skip("looked at in test_prometheus.py, where the same gateway is played with")
    assert page.documented(PAGE) == page.exposed(tmp_path)


def test_what_is_written_is_what_is_read_back() -> None:
    families = page.documented(PAGE)
    assert len(families) > 40
    assert page.documented(page.BEGIN + page.table(families) + page.END) == families


def test_a_metric_is_explained_by_its_help_and_named_as_its_type_asks() -> None:
    for name, family in page.documented(PAGE).items():
        assert family.help
        assert name.startswith(("headgate_", "process_"))
        assert name.endswith("_total") == (family.type == "counter")
        assert name.endswith("_seconds") or family.type != "histogram"
