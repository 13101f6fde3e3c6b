"""Parts that several dashboards share: their variables, and the ratio that never stands without its n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monitors.grafana.board import Panel, Query, Variable
from monitors.grafana.promql import ratio

GREEN_TO_RED = ((None, "green"), (0.001, "yellow"), (0.01, "red"))


def variables(job: str, control: str) -> tuple[Variable, ...]:
    """Which scrapes: `job` is the data port's, `control` the admin port's."""
    return (
        Variable("job", "Job of the data port", "headgate_requests_total", "job", chosen=job),
        Variable("control", "Job of the admin port", "headgate_monitor_lag_rows", "job", chosen=control),
        Variable("instance", "Instance", 'headgate_build_info{job=~"$job|$control"}', "instance", several=True),
    )


def models(*, several: bool) -> tuple[Variable, ...]:
    """Which models and versions."""
    return (
        Variable("model", "Model", 'headgate_model_info{job="$job"}', "model", several=several),
        Variable("version", "Version", 'headgate_model_info{job="$job",model=~"$model"}', "version", several=True),
    )


def share(
    title: str,
    description: str,
    part: str,
    whole: str,
    n: str,
    *,
    legend: str,
    what: str,
    width: int = 8,
    steps: Sequence[tuple[float | None, str]] = GREEN_TO_RED,
    defaults: Mapping[str, Any] | None = None,
) -> Panel:
    """A ratio over the interval of the picture, and on the right axis of how many (`n`) of `what` it is the ratio."""
    label = f"{legend}: " if legend else ""
    return Panel(
        title,
        f"{description} Each point is the ratio over the panel's interval ($__rate_interval); the dots on the right "
        f"axis are the number of {what} that it rests on.",
        "percentunit",
        [
            Query(ratio(part, whole), f"{label}ratio"),
            Query(n, f"{label}{what}", count=True),
        ],
        width=width,
        steps=steps,
        defaults={"min": 0, **(defaults or {})},
    )
