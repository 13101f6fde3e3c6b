"""Model: one model, its versions side by side: traffic, drift, data quality, alarms and their evidence."""

from __future__ import annotations

from monitors.grafana.board import Board, Panel, Query, Row, Variable
from monitors.grafana.objectives import Objectives
from monitors.grafana.parts import models, share, variables
from monitors.grafana.promql import CONTROL, DATA, VERSION, count, quantile, rate, select

REQUESTS = "headgate_requests_total"
SECONDS = "headgate_request_duration_seconds"
WHERE = (*DATA, *VERSION)
WATCHED = (*CONTROL, *VERSION)
BY = ("model", "version")
STATISTICS = ("psi", "jensen_shannon", "kolmogorov_smirnov", "wasserstein", "mean_shift")
WARMTH = ((None, "green"), (0.02, "yellow"), (0.1, "orange"), (0.25, "red"))


def board(goals: Objectives) -> Board:
    """The dashboard "Headgate: model"."""
    several = [
        Variable("statistic", "Statistic", values=STATISTICS, chosen="psi"),
        Variable(
            "feature",
            "Features and outputs",
            'headgate_drift_score{job="$control",model=~"$model"}',
            "feature",
            several=True,
        ),
    ]
    return Board(
        "headgate-model",
        "Headgate: model",
        "One model: its versions side by side, drift of inputs and outputs, data quality, alarms and their evidence.",
        [_versions(), _drift(), _outputs(), _quality(), _alarms()],
        [*variables(goals.job, goals.control), *models(several=False), *several],
        since="now-24h",
    )


def _versions() -> Row:
    every = rate(REQUESTS, *WHERE, by=BY)
    return Row(
        "Versions side by side",
        [
            Panel(
                "Requests by version",
                "Inference requests a second.",
                "reqps",
                [Query(every, "version {{version}}")],
                width=6,
                stacked=True,
            ),
            share(
                "Failed by version",
                "Share of requests that failed or were refused (classes server and overload).",
                rate(REQUESTS, *WHERE, 'class=~"server|overload"', by=BY),
                every,
                count(REQUESTS, *WHERE, by=BY),
                legend="version {{version}}",
                what="requests",
                width=6,
            ),
            Panel(
                "Latency by version",
                "Median and p99 of the whole time of answered requests.",
                "s",
                [
                    Query(quantile(q, SECONDS, *WHERE, 'phase="total"', by=BY), f"version {{{{version}}}} p{100 * q:g}")
                    for q in (0.5, 0.99)
                ],
                width=6,
            ),
            Panel(
                "What is loaded",
                "Loaded versions with the digest of their files, and the aliases that point to them.",
                "none",
                [
                    Query(select("headgate_model_info", *WHERE), shape="table", instant=True),
                    Query(select("headgate_model_alias", *WHERE), shape="table", instant=True),
                ],
                kind="table",
                width=6,
                transformations=(
                    {"id": "merge", "options": {}},
                    {
                        "id": "organize",
                        "options": {
                            "excludeByName": {
                                "Time": True,
                                "Value #A": True,
                                "Value #B": True,
                                "__name__": True,
                                "job": True,
                            },
                            "indexByName": {"instance": 0, "model": 1, "version": 2, "alias": 3, "verified": 4},
                        },
                    },
                ),
            ),
            Panel(
                "Values that became null",
                "Output values a second that were NaN or infinite in JSON replies.",
                "short",
                [Query(rate("headgate_nonfinite_outputs_total", *WHERE, by=BY), "version {{version}}")],
                width=6,
            ),
            Panel(
                "Ready",
                "1 where a version answers requests, 0 where it is known and does not.",
                "none",
                [Query(f"min by (model, version) ({select('headgate_model_ready', *WHERE)})", "version {{version}}")],
                width=6,
                defaults={"min": 0, "max": 1},
            ),
            Panel(
                "Cost of a run",
                "What was learned of the time of a run: besides the rows (fixed), and for each row.",
                "s",
                [
                    Query(
                        f"max by (version, part) ({select('headgate_run_cost_seconds', *WHERE)})",
                        "version {{version}} {{part}}",
                    )
                ],
                width=6,
            ),
            Panel(
                "Memory of a version",
                "What it took in quarantine; every worker holds it once.",
                "bytes",
                [Query(f"max by (version) ({select('headgate_model_memory_bytes', *WHERE)})", "version {{version}}")],
                width=6,
                defaults={"min": 0},
            ),
        ],
    )


def _drift() -> Row:
    score = select("headgate_drift_score", *WATCHED, 'statistic="psi"')
    chosen = select("headgate_drift_score", *WATCHED, 'statistic="$statistic"', 'feature=~"$feature"')
    samples = f"max by (version) ({select('headgate_drift_samples', *WATCHED)})"
    return Row(
        "Drift: window against baseline",
        [
            Panel(
                "Drift heat map",
                "PSI of each of the 20 strongest features and outputs against the baseline, without what finite "
                "samples add to it: about 0 where nothing drifted. _other_ is the strongest of the rest. The window is "
                "that of the model (window_s); numbers here wake nobody, alarms do.",
                "short",
                [Query(f"max by (version, feature) ({score})", "{{version}} {{feature}}")],
                kind="status-history",
                width=16,
                height=10,
                steps=WARMTH,
                options={"showValue": "never", "rowHeight": 0.9, "legend": {"showLegend": False}},
            ),
            Panel(
                "Top features",
                "The ten features and outputs that differ most from the baseline at the end of the picture (PSI).",
                "short",
                [Query(f"topk(10, max by (version, feature) ({score}))", "{{version}} {{feature}}", instant=True)],
                kind="bargauge",
                height=10,
                steps=WARMTH,
                options={"orientation": "horizontal", "displayMode": "basic"},
            ),
            Panel(
                "Chosen statistic",
                "The statistic chosen above, for the features and outputs chosen above. wasserstein is in the "
                "feature's own unit, mean_shift is Welch's t.",
                "short",
                [Query(f"max by (version, feature) ({chosen})", "{{version}} {{feature}}")],
                width=12,
            ),
            Panel(
                "Rows that the scores rest on",
                "Rows of the window, and whether the baseline was learned from live rows instead of training data (1).",
                "short",
                [
                    Query(samples, "version {{version}}: rows in the window"),
                    Query(
                        f"max by (version) ({select('headgate_monitor_learned_baseline', *WATCHED)})",
                        "version {{version}}: learned baseline",
                        count=True,
                    ),
                ],
                width=12,
                defaults={"min": 0},
            ),
        ],
    )


def _outputs() -> Row:
    of = select("headgate_monitor_output_share", *WATCHED, 'output=~"$feature"')
    part = f"max by (version, output, bin) ({of})"
    samples = f"max by (version) ({select('headgate_drift_samples', *WATCHED)})"
    return Row(
        "Answers",
        [
            Panel(
                "Output distribution",
                "Share of the answers of the model's window in each bin, at the end of the picture, for the outputs "
                "among those chosen above. Bins hold about as much of the baseline each: bars of one length are "
                "answers as in training. They rest on the rows of the window that stand below.",
                "percentunit",
                [
                    Query(part, "{{version}} {{output}} {{bin}}", instant=True),
                    Query(samples, "version {{version}}: rows of the window", instant=True, count=True),
                ],
                kind="bargauge",
                height=10,
                steps=((None, "blue"),),
                options={"orientation": "horizontal", "displayMode": "basic"},
            ),
            Panel(
                "Output distribution over time",
                "The same from window to window: lines that lie together are answers as in training, lines that part "
                "are answers that have moved. The dots on the right axis are the rows of the window.",
                "percentunit",
                [
                    Query(part, "{{version}} {{output}} {{bin}}"),
                    Query(samples, "version {{version}}: rows", count=True),
                ],
                width=16,
                height=10,
                defaults={"min": 0},
            ),
        ],
    )


def _quality() -> Row:
    quality = select("headgate_data_quality_ratio", *WATCHED, 'feature=~"$feature"')
    samples = f"max by (version) ({select('headgate_drift_samples', *WATCHED)})"

    def of(title: str, description: str, kinds: str) -> Panel:
        part = select("headgate_data_quality_ratio", *WATCHED, f'kind=~"{kinds}"', 'feature=~"$feature"')
        return Panel(
            title,
            f"{description} Shares of the rows of the model's window; the dots on the right axis are those rows.",
            "percentunit",
            [
                Query(f"max by (version, feature, kind) ({part})", "{{version}} {{feature}} {{kind}}"),
                Query(samples, "version {{version}}: rows", count=True),
            ],
            defaults={"min": 0},
        )

    return Row(
        "Data quality",
        [
            Panel(
                "Worst rates",
                "The ten largest rates at the end of the picture: missing, absent (no such column), infinite, unseen, "
                "other (rare categories), out_of_range, held (too far out for the moments). They rest on the rows of "
                "the window that stand below.",
                "percentunit",
                [
                    Query(
                        f"topk(10, max by (version, feature, kind) ({quality}))",
                        "{{version}} {{feature}} {{kind}}",
                        instant=True,
                    ),
                    Query(samples, "version {{version}}: rows of the window", instant=True, count=True),
                ],
                kind="bargauge",
                steps=((None, "green"), (0.01, "yellow"), (0.1, "red")),
                options={"orientation": "horizontal", "displayMode": "basic"},
            ),
            of("Missing", "Null, NaN, no column, and infinite numbers.", "missing|absent|infinite"),
            of("Not as in training", "Unseen values, and numbers outside the baseline's range.", "unseen|out_of_range"),
        ],
    )


def _alarms() -> Row:
    return Row(
        "Alarms and evidence",
        [
            Panel(
                "Evidence",
                "Evidence of each watch against what it needs for an alarm (dashed), natural logarithms: each unit is "
                "a factor of e. It counts by its own rules of the rows so far, not of the picture's interval.",
                "none",
                [
                    Query(
                        f"max by (version, watch) ({select('headgate_alarm_evidence', *WATCHED)})",
                        "version {{version}} {{watch}}",
                    ),
                    Query(
                        f"max by (version, watch) ({select('headgate_alarm_threshold', *WATCHED)})",
                        "version {{version}} {{watch}}: alarm at",
                    ),
                ],
                width=12,
            ),
            Panel(
                "Alarms",
                "1 while an alarm is raised that nobody has acknowledged. See /api/alarms of the admin port.",
                "none",
                [
                    Query(
                        f"max by (version, watch) ({select('headgate_alarm', *WATCHED)})",
                        "version {{version}} {{watch}}",
                    )
                ],
                kind="state-timeline",
                width=12,
                steps=((None, "green"), (1, "red")),
                options={"mergeValues": True, "showValue": "never"},
            ),
        ],
    )
