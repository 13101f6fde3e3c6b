"""Performance: how good the answers are, realised by labels and estimated without them, and what the labels cover."""

from __future__ import annotations

from monitors.grafana.board import Board, Panel, Query, Row, Variable
from monitors.grafana.objectives import Objectives
from monitors.grafana.parts import models, variables
from monitors.grafana.promql import CONTROL, MODEL, VERSION, quantile, rate, select

WHERE = (*CONTROL, *VERSION)
CHOSEN = 'metric=~"$metric"'
RATIO = "headgate_performance_ratio"
ERROR = "headgate_performance_error"
SAMPLES = "headgate_performance_samples"
LAG = "headgate_label_lag_seconds"
COVERAGE = "headgate_label_coverage_ratio"
BY = "version, metric, kind"
LEGEND = "{{version}} {{metric}} {{kind}}"
KINDS = ('kind="realised"', 'kind="estimated"')


def board(goals: Objectives) -> Board:
    """The dashboard "Headgate: performance"."""
    return Board(
        "headgate-performance",
        "Headgate: performance",
        "How good the answers are: realised by labels, estimated before labels come; label lag and coverage.",
        [_goodness(), _labels(), _alarms()],
        [
            *variables(goals.job, goals.control),
            *models(several=False),
            Variable(
                "metric",
                "Figure",
                'headgate_performance_samples{job="$control",model=~"$model"}',
                "metric",
                several=True,
            ),
        ],
        since="now-7d",
    )


def _goodness() -> Row:
    def of(kind: str) -> list[Query]:
        this = f'kind="{kind}"'
        return [
            Query(f"max by ({BY}) ({select(RATIO, *WHERE, CHOSEN, this)})", LEGEND),
            Query(f"max by ({BY}) ({select(SAMPLES, *WHERE, CHOSEN, this)})", f"{LEGEND}: rows", count=True),
        ]

    realised, estimated = (f"max by (version, metric) ({select(RATIO, *WHERE, CHOSEN, each)})" for each in KINDS)
    return Row(
        "Realised and estimated",
        [
            Panel(
                "Realised",
                "Figures of the model's window from the labels that came, by the time of the prediction. The dots on "
                "the right axis are the labelled rows that they rest on.",
                "percentunit",
                of("realised"),
                width=12,
                height=9,
            ),
            Panel(
                "Estimated",
                "The same figures estimated without labels, from what the model said and how well it was calibrated. "
                "The dots on the right axis are the rows of the window.",
                "percentunit",
                of("estimated"),
                width=12,
                height=9,
            ),
            Panel(
                "Realised less estimated",
                "Below 0: answers are worse than inputs and scores let one expect, so that the meaning of labels has "
                "changed, or those that came are not like the rest. See coverage below.",
                "short",
                [Query(f"{realised} - {estimated}", "{{version}} {{metric}}")],
                width=8,
            ),
            Panel(
                "Errors",
                "Figures in units of their own: mae, rmse and bias in that of the label, log_loss in nats, mape and r2 "
                "without one.",
                "short",
                [Query(f"max by ({BY}) ({select(ERROR, *WHERE)})", LEGEND)],
                width=8,
            ),
            Panel(
                "Latest figures",
                "Every figure at the end of the picture, with the rows that it rests on.",
                "none",
                [
                    Query(f"max by ({BY}) ({select(RATIO, *WHERE)})", shape="table", instant=True),
                    Query(f"max by ({BY}) ({select(SAMPLES, *WHERE)})", shape="table", instant=True),
                ],
                kind="table",
                width=8,
                transformations=(
                    {"id": "merge", "options": {}},
                    {
                        "id": "organize",
                        "options": {
                            "excludeByName": {"Time": True},
                            "renameByName": {"Value #A": "value", "Value #B": "rows"},
                        },
                    },
                ),
            ),
        ],
    )


def _labels() -> Row:
    came = f"max by (version, name) ({select(LAG + '_count', *WHERE)})"
    return Row(
        "Labels",
        [
            Panel(
                "Label lag",
                "How long after their predictions the labels came that arrived in each interval. Labels still to come "
                "are not among them.",
                "s",
                [
                    Query(
                        quantile(q, LAG, *WHERE, by=("version", "name")), f"{{{{version}}}} {{{{name}}}} p{100 * q:g}"
                    )
                    for q in (0.5, 0.9, 0.99)
                ],
            ),
            Panel(
                "Label coverage",
                "Share of the predictions of at least this age that had a label at this age (1 h, 1 d, 7 d, 30 d). The "
                "dots on the right axis are all labels so far.",
                "percentunit",
                [
                    Query(
                        f"max by (version, name, age) ({select(COVERAGE, *WHERE)})",
                        "{{version}} {{name}} after {{age}}",
                    ),
                    Query(came, "{{version}} {{name}}: labels", count=True),
                ],
                defaults={"min": 0},
            ),
            Panel(
                "Labels",
                "First labels of predictions a second, by the name of the feedback.",
                "short",
                [Query(rate(LAG + "_count", *WHERE, by=("version", "name")), "{{version}} {{name}}")],
            ),
            Panel(
                "Events by what they came to",
                "Feedback events in the ledger by state: matched, pending (the prediction is not known yet), orphan, "
                "late and so on. All there are, not those of the interval.",
                "short",
                [
                    Query(
                        f"max by (name, state) ({select('headgate_ledger_events', *CONTROL, *MODEL)})",
                        "{{name}} {{state}}",
                    )
                ],
                width=24,
                stacked=True,
            ),
        ],
    )


def _alarms() -> Row:
    of_labels = (*WHERE, 'watch!~"training|recent"')
    return Row(
        "Alarms from labels",
        [
            Panel(
                "Evidence",
                "Evidence of each watch that looks at labels or scores, and what it needs for an alarm; natural "
                "logarithms: each unit is a factor of e.",
                "none",
                [
                    Query(
                        f"max by (version, watch) ({select('headgate_alarm_evidence', *of_labels)})",
                        "version {{version}} {{watch}}",
                    ),
                    Query(
                        f"max by (version, watch) ({select('headgate_alarm_threshold', *of_labels)})",
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
                        f"max by (version, watch) ({select('headgate_alarm', *of_labels)})",
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
