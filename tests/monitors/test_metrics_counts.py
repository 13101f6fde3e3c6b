"""Counts of the monitors as Prometheus wants them."""

from __future__ import annotations

from typing import cast

from monitors.metrics import Collector
from monitors.service import Service


def test_a_count_does_not_fall_where_counting_begins_anew() -> None:
    collector = Collector(cast(Service, None))
    shown = [collector._grown(value, "rows", "m", "1") for value in (0, 500, 4500, 0, 500, 700, 700)]
    assert shown == [0, 500, 4500, 4500, 5000, 5200, 5200]
    assert collector._grown(3, "rows", "m", "2") == 3
