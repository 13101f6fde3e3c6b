"""Names of recorded series, `level:metric:operations`: rules write them, dashboards and alerts read them."""

from __future__ import annotations


def failed(window: str) -> str:
    """Share of requests, those that are the client's fault left out, that were not answered."""
    return f"model:headgate_requests_failed:ratio_rate{window}"


def slow(window: str) -> str:
    """Share of answered requests that took longer than the objective."""
    return f"model:headgate_requests_slow:ratio_rate{window}"
