"""Overview: is the gateway answering, right and in time, and how much room is left?"""

from __future__ import annotations

from monitors.grafana.board import Board, Panel, Query, Row
from monitors.grafana.names import failed
from monitors.grafana.objectives import Objectives
from monitors.grafana.parts import models, share, variables
from monitors.grafana.promql import DATA, MODEL, VERSION, count, mean, quantile, rate, select, total

REQUESTS = "headgate_requests_total"
SECONDS = "headgate_request_duration_seconds"
WHERE = (*DATA, *VERSION)
WHOLE = (*WHERE, 'phase="total"')


def board(goals: Objectives) -> Board:
    """The dashboard "Headgate: overview"."""
    return Board(
        "headgate-overview",
        "Headgate: overview",
        "Traffic, errors, latency by phase and saturation of all models.",
        [_traffic(), _errors(goals), _latency(goals), _saturation()],
        [*variables(goals.job, goals.control), *models(several=True)],
    )


def _traffic() -> Row:
    return Row(
        "Traffic",
        [
            Panel(
                "Requests",
                "Inference requests a second, by model and version, whatever they came to.",
                "reqps",
                [Query(rate(REQUESTS, *WHERE, by=("model", "version")), "{{model}} {{version}}")],
                stacked=True,
            ),
            Panel(
                "Rows",
                "Rows a second in answered requests: a request may hold many.",
                "rowsps",
                [Query(rate("headgate_rows_total", *WHERE, by=("model", "version")), "{{model}} {{version}}")],
                stacked=True,
            ),
            Panel(
                "Requests by outcome",
                "ok, or the code of the error that the client was sent. Requests for models that are not there are "
                "left out here; they stand under HTTP replies.",
                "reqps",
                [Query(rate(REQUESTS, *WHERE, by=("code",)), "{{code}}")],
                stacked=True,
            ),
        ],
    )


def _errors(goals: Objectives) -> Row:
    every = rate(REQUESTS, *WHERE, by=("model",))
    n = count(REQUESTS, *WHERE, by=("model",))

    def of(title: str, description: str, kind: str) -> Panel:
        part = rate(REQUESTS, *WHERE, f'class="{kind}"', by=("model",))
        return share(title, description, part, every, n, legend="{{model}}", what="requests", width=6)

    allowed = f"{1 - goals.availability:g}"
    return Row(
        "Errors",
        [
            of("Failed", "Share of requests that Headgate or the model failed (model-failed, internal).", "server"),
            of("Refused", "Share of requests refused for lack of room or time (queue-full, deadline-exceeded ...).",
               "overload"),
            of("Wrong requests", "Share of requests that were the client's fault.", "client"),
            Panel(
                "Availability: budget burn",
                f"How fast the error budget of {goals.availability:.3%} burns, by window: 1 spends exactly the budget "
                "in 30 days; a person is called at 14.4 (1 h) and at 6 (6 h). From the recording rules.",
                "short",
                [
                    Query(f"{select(failed(window), *DATA[:1], *MODEL)} / {allowed}", f"{{{{model}}}} {window}")
                    for window in ("5m", "1h", "6h", "3d")
                ],
                width=6,
                steps=((None, "green"), (1, "yellow"), (6, "orange"), (14.4, "red")),
                defaults={"min": 0, "custom": {"thresholdsStyle": {"mode": "dashed"}}},
            ),
            Panel(
                "HTTP replies",
                "Every reply of the data port by its status, also of what is no inference.",
                "reqps",
                [Query(rate("headgate_http_requests_total", *DATA, by=("status",)), "{{status}}")],
                width=12,
                stacked=True,
            ),
            Panel(
                "HTTP replies by route, not 200",
                "Replies whose status is not 200, by the pattern of their route.",
                "reqps",
                [
                    Query(
                        rate("headgate_http_requests_total", *DATA, 'status!="200"', by=("route", "status")),
                        "{{route}} {{status}}",
                    )
                ],
                width=12,
            ),
        ],
    )  # fmt: skip


def _latency(goals: Objectives) -> Row:
    every = rate(SECONDS + "_count", *WHOLE, by=("model",))
    slow = f"{every} - {rate(SECONDS + '_bucket', *WHOLE, goals.bucket, by=('model',))}"
    return Row(
        "Latency",
        [
            Panel(
                "Latency",
                "Quantiles of the whole time of answered requests, by model, from the buckets of all workers.",
                "s",
                [
                    Query(quantile(q, SECONDS, *WHOLE, by=("model",)), f"{{{{model}}}} p{100 * q:g}")
                    for q in (0.5, 0.95, 0.99)
                ],
            ),
            Panel(
                "Mean time by phase",
                "Where the time of an answered request goes. decode: the body becomes rows; queue: waits for the "
                "session; run: the model; encode: rows become the reply. Summed seconds by summed requests.",
                "s",
                [Query(mean(SECONDS, *WHERE, 'phase!="total"', by=("phase",)), "{{phase}}")],
                stacked=True,
            ),
            Panel(
                "p99 by phase",
                "The slowest hundredth of each phase; quantiles of phases do not add up.",
                "s",
                [Query(quantile(0.99, SECONDS, *WHERE, by=("phase",)), "{{phase}}")],
            ),
            Panel(
                "Distribution of latency",
                "Answered requests by their whole time: each cell counts those of one bucket in one interval.",
                "short",
                [Query(total(f"increase({select(SECONDS + '_bucket', *WHOLE, over='$__rate_interval')})", ("le",)),
                       "{{le}}", shape="heatmap")],
                kind="heatmap",
                width=12,
                options={
                    "calculate": False,
                    "yAxis": {"unit": "s"},
                    "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
                    "cellGap": 1,
                },
            ),
            share(
                "Slow",
                f"Share of answered requests that took longer than {goals.latency_s:g} s, which may be "
                f"{1 - goals.latency:.2%}.",
                f"({slow})",
                every,
                count(SECONDS + "_count", *WHOLE, by=("model",)),
                legend="{{model}}",
                what="requests",
                width=12,
            ),
        ],
    )  # fmt: skip


def _saturation() -> Row:
    runs = rate("headgate_runs_total", *WHERE, by=("model", "version"))
    return Row(
        "Saturation",
        [
            Panel(
                "In flight",
                "Requests that are being answered at the moment of the scrape.",
                "short",
                [
                    Query(
                        total(select("headgate_requests_in_flight", *WHERE), ("model", "version")),
                        "{{model}} {{version}}",
                    )
                ],
                width=6,
            ),
            Panel(
                "Rows per run",
                "The size of the batches that form by themselves while a session is busy. Rows by runs.",
                "short",
                [
                    Query(
                        f"{rate('headgate_rows_total', *WHERE, by=('model', 'version'))} / ({runs} > 0)",
                        "{{model}} {{version}}",
                    )
                ],
                width=6,
                defaults={"min": 0},
            ),
            Panel(
                "Sessions busy",
                "Seconds of model runs in each second, as requests see them: requests of one batch each count its "
                "whole run, so that it may pass the number of workers.",
                "short",
                [
                    Query(
                        rate(SECONDS + "_sum", *WHERE, 'phase="run"', by=("model", "version")), "{{model}} {{version}}"
                    )
                ],
                width=6,
                defaults={"min": 0},
            ),
            Panel(
                "Refused by code",
                "Requests a second that were refused for lack of room or time, by code.",
                "reqps",
                [Query(rate(REQUESTS, *WHERE, 'class="overload"', by=("code",)), "{{code}}")],
                width=6,
            ),
        ],
    )
