"""Operations: Headgate itself: its processes, its journal, its monitors and what they cost, feedback."""

from __future__ import annotations

from monitors.grafana.board import Board, Panel, Query, Row
from monitors.grafana.objectives import Objectives
from monitors.grafana.parts import models, share, variables
from monitors.grafana.promql import CONTROL, DATA, MODEL, VERSION, count, rate, select, total

WATCHED = (*CONTROL, *VERSION)
BY = ("model", "version")
FEEDBACK = "headgate_feedback_total"
ACCEPTED = "matched|pending|late|deleted|replayed"
"""What feedback is answered that is no error."""


def board(goals: Objectives) -> Board:
    """The dashboard "Headgate: operations"."""
    return Board(
        "headgate-operations",
        "Headgate: operations",
        "Headgate itself: processes, journal, monitors and their cost, feedback, ledger.",
        [_processes(), _journal(), _monitors(), _feedback(), _ledger()],
        [*variables(goals.job, goals.control), *models(several=True)],
    )


def _processes() -> Row:
    return Row(
        "Processes",
        [
            Panel(
                "Scraped",
                "1 where Prometheus reaches a port. The data port answers while the control process is away.",
                "none",
                [
                    Query(
                        select("up", 'job=~"$job|$control"', 'instance=~"$instance"'),
                        "{{instance}} {{job}}",
                    )
                ],
                kind="state-timeline",
                width=6,
                steps=((None, "red"), (1, "green")),
                options={"mergeValues": True, "showValue": "never"},
            ),
            Panel(
                "Segments of workers that died",
                "Journal segments that a dead worker left open and that were taken over: any is a worker that crashed "
                "or was replaced. Counted in each interval.",
                "short",
                [Query(count("headgate_journal_segments_recovered_total", *DATA), "segments")],
                width=6,
                defaults={"min": 0},
            ),
            Panel(
                "Memory of the control process",
                "Resident memory of the process that answers the admin port.",
                "bytes",
                [Query(total(select("process_resident_memory_bytes", *CONTROL), ("instance",)), "{{instance}}")],
                width=6,
                defaults={"min": 0},
            ),
            Panel(
                "Processor time of the control process",
                "Cores that the control process takes, monitors included.",
                "short",
                [Query(rate("process_cpu_seconds_total", *CONTROL, by=("instance",)), "{{instance}}")],
                width=6,
                defaults={"min": 0},
            ),
            Panel(
                "Open files of the control process",
                "Open files, and how many there may be.",
                "short",
                [
                    Query(total(select("process_open_fds", *CONTROL), ("instance",)), "{{instance}} open"),
                    Query(total(select("process_max_fds", *CONTROL), ("instance",)), "{{instance}} limit"),
                ],
                width=6,
                defaults={"min": 0},
            ),
            Panel(
                "Up since",
                "When the control process began.",
                "dateTimeFromNow",
                [Query(f"max by (instance) ({select('process_start_time_seconds', *CONTROL)}) * 1000", "{{instance}}")],
                kind="stat",
                width=6,
            ),
            Panel(
                "Versions of Headgate",
                "Instances by the version of Headgate that they run: two only while an upgrade is rolled out.",
                "short",
                [Query(f"count by (version) ({select('headgate_build_info', *DATA)})", "{{version}}")],
                kind="stat",
                width=6,
            ),
            Panel(
                "Models ready",
                "Versions that answer requests, and versions that are known and do not.",
                "short",
                [
                    Query(f"sum({select('headgate_model_ready', *DATA, *VERSION)})", "ready"),
                    Query(
                        f"count({select('headgate_model_ready', *DATA, *VERSION)})"
                        f" - sum({select('headgate_model_ready', *DATA, *VERSION)})",
                        "not ready",
                    ),
                ],
                kind="stat",
                width=6,
            ),
        ],
    )


def _journal() -> Row:
    return Row(
        "Journal",
        [
            Panel(
                "Records lost",
                "Records that are not in the journal, counted in each interval. dropped: no room on the disk; cut: "
                "torn by a crash of the machine; damaged: stretches that do not fit their checksums.",
                "short",
                [Query(count("headgate_journal_lost_total", *DATA, by=("reason",)), "{{reason}}")],
                width=12,
                defaults={"min": 0},
            ),
            Panel(
                "Failed writes",
                "Writes of the journal that failed, counted in each interval.",
                "short",
                [Query(count("headgate_journal_errors_total", *DATA), "failed writes")],
                width=12,
                defaults={"min": 0},
            ),
        ],
    )


def _monitors() -> Row:
    seen = rate("headgate_monitor_rows_total", *WATCHED, by=BY)
    loose = rate("headgate_monitor_unseen_rows_total", *WATCHED, by=BY)
    both = f"({seen} + {loose})"
    counted = count("headgate_monitor_rows_total", *WATCHED, by=BY)
    n = f"({counted} + {count('headgate_monitor_unseen_rows_total', *WATCHED, by=BY)})"
    late = rate("headgate_monitor_late_rows_total", *WATCHED, by=BY)
    return Row(
        "Monitors",
        [
            Panel(
                "Rows counted",
                "Rows a second that the monitors count.",
                "rowsps",
                [Query(seen, "{{model}} {{version}}")],
                stacked=True,
            ),
            Panel(
                "Behind",
                "Rows of the journal that the monitors have not read yet.",
                "short",
                [Query(total(select("headgate_monitor_lag_rows", *CONTROL), ("instance",)), "{{instance}}")],
                defaults={"min": 0},
            ),
            Panel(
                "Cost",
                "Cores that the monitors take. They give way to the workers.",
                "short",
                [Query(rate("headgate_monitor_cpu_seconds_total", *CONTROL, by=("instance",)), "{{instance}}")],
                defaults={"min": 0},
            ),
            share(
                "Not seen",
                "Share of what was answered whose values have no columns, which monitors do not see.",
                loose,
                both,
                n,
                legend="{{model}} {{version}}",
                what="rows",
                steps=((None, "green"), (0.1, "yellow"), (0.5, "red")),
            ),
            share(
                "Late",
                "Share of rows that came after their block was closed, and count in a later one.",
                late,
                seen,
                counted,
                legend="{{model}} {{version}}",
                what="rows",
            ),
            Panel(
                "Alarms raised",
                "Alarms that nobody has acknowledged.",
                "short",
                [Query(f"sum({select('headgate_alarm', *WATCHED)})", "alarms")],
                kind="stat",
                steps=((None, "green"), (1, "red")),
            ),
        ],
    )


def _feedback() -> Row:
    where = (*DATA, *MODEL)
    return Row(
        "Feedback",
        [
            Panel(
                "Feedback by answer",
                "Feedback events a second by what they were answered: matched, pending, late, deleted, replayed, or "
                "the code of the error. Events without a model are left out where models are chosen.",
                "eps",
                [Query(rate(FEEDBACK, *where, by=("status",)), "{{status}}")],
                width=9,
                stacked=True,
            ),
            share(
                "Feedback refused",
                "Share of feedback events that were answered with an error.",
                rate(FEEDBACK, *where, f'status!~"{ACCEPTED}"', by=("model",)),
                rate(FEEDBACK, *where, by=("model",)),
                count(FEEDBACK, *where, by=("model",)),
                legend="{{model}}",
                what="events",
                width=9,
                steps=((None, "green"), (0.01, "yellow"), (0.1, "red")),
            ),
            Panel(
                "Idempotency keys forgotten",
                "Keys that had to make room for newer ones, counted in each interval: an event that is sent again "
                "after that counts twice.",
                "short",
                [Query(count("headgate_feedback_keys_forgotten_total", *DATA), "keys")],
                width=6,
                defaults={"min": 0},
            ),
        ],
    )


def _ledger() -> Row:
    return Row(
        "Ledger",
        [
            Panel(
                "Readable",
                "1 while the ledger can be read. Predictions and feedback go on being accepted while it is 0.",
                "none",
                [Query(f"min by (instance) ({select('headgate_ledger_readable', *CONTROL)})", "{{instance}}")],
                kind="state-timeline",
                steps=((None, "red"), (1, "green")),
                options={"mergeValues": True, "showValue": "never"},
            ),
            Panel(
                "Backlog",
                "Feedback that was acknowledged and is on disk, but not in the ledger yet.",
                "bytes",
                [Query(total(select("headgate_ledger_backlog_bytes", *CONTROL), ("instance",)), "{{instance}}")],
                defaults={"min": 0},
            ),
            Panel(
                "Damaged",
                "Bytes of feedback logs that no checksum vouches for: at the end of a log after a crash of the "
                "machine, or in the middle, which is a fault of the disk.",
                "bytes",
                [Query(total(select("headgate_ledger_damaged_bytes", *CONTROL), ("instance", "where")),
                       "{{instance}} {{where}}")],
                defaults={"min": 0},
            ),
        ],
    )  # fmt: skip
