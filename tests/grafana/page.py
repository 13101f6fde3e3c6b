"""Makes docs/metrics.md from what a running gateway really exposes: `python -m tests.grafana.page` writes it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.grafana.scenario import Traffic, scrape, started
from tests.servers import Server

PATH = Path(__file__).parents[2] / "docs" / "metrics.md"
BEGIN, END = "<!-- metrics:begin -->\n", "<!-- metrics:end -->\n"

LABELS_OF_RARE = {
    "headgate_loss_detections_total": ("detector", "loss", "model", "version"),
    "headgate_webhook_events_total": ("outcome",),
}
"""Labels of what is there only where somebody asks for detectors of streams, or for a webhook."""


class Family(NamedTuple):
    """A metric as it is exposed: on the admin port alone, or on both."""

    type: str
    labels: tuple[str, ...]
    help: str
    admin_only: bool


def read(text: str) -> dict[str, Family]:
    """The families of an exposition by the names of their series; no labels where there is no series."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        labels = labels or sorted(LABELS_OF_RARE.get(name, ()))
        found[name] = Family(family.type, tuple(labels), family.documentation, False)
    return found


def both(data: str, admin: str) -> dict[str, Family]:
    """The families of both ports. Raises AssertionError where the data port has one that the admin port has not."""
    on_data, on_admin = read(data), read(admin)
    assert on_data.keys() <= on_admin.keys()
    return {name: family._replace(admin_only=name not in on_data) for name, family in on_admin.items()}


def table(families: Mapping[str, Family]) -> str:
    """The table in Markdown."""
    lines = ["| metric | type | labels | port | meaning |", "|---|---|---|---|---|"]
    for name, family in sorted(families.items()):
        port = "admin" if family.admin_only else "both"
        meaning = family.help.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| `{name}` | {family.type} | {', '.join(family.labels)} | {port} | {meaning} |")
    return "\n".join(lines) + "\n"


def documented(page: str) -> dict[str, Family]:
    """The families that the page names."""
    found = {}
    for line in page.partition(BEGIN)[2].partition(END)[0].splitlines()[2:]:
        name, kind, labels, port, meaning = (cell.strip() for cell in line.strip("|").split(" | "))
        names = tuple(label for label in labels.split(", ") if label)
        found[name.strip("`")] = Family(kind, names, meaning.replace("\\|", "|"), port == "admin")
    return found


def complete(server: Server) -> bool:
    """Whether every family has a series."""
    families = both(scrape(server.url), scrape(server.admin_url))
    return bool(families) and all(family.labels or not has_parts(name) for name, family in families.items())


def has_parts(name: str) -> bool:
    """Whether a family tells of parts, so that its labels are known only when there is one."""
    return name.startswith(
        (
            *("headgate_drift", "headgate_data", "headgate_alarm", "headgate_label", "headgate_perf"),
            *("headgate_feedback_t", "headgate_monitor_output"),
        )
    )


def exposed(scratch: Path) -> dict[str, Family]:
    """The families of a gateway under traffic, once all have a series."""
    server = started(scratch)
    try:
        with Traffic(server):
            server.wait_for(lambda: complete(server), 60, "every family has a series")
        return both(scrape(server.url), scrape(server.admin_url))
    finally:
        server.stop()


def main() -> int:
    """Write the page."""
    with tempfile.TemporaryDirectory() as scratch:
        families = exposed(Path(scratch))
    page = PATH.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    PATH.write_text(head + BEGIN + table(families) + END + rest.partition(END)[2], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
