"""Board: a dashboard as Grafana reads it, from rows of panels. Layout, identities and data source are set here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]

SOURCE: Mapping[str, str] = {"type": "prometheus", "uid": "${datasource}"}
TAG = "headgate"
WIDTH = 24
SCHEMA = 41
"""The schema of Grafana 12.0; later versions migrate it by themselves."""


@dataclass(frozen=True)
class Query:
    """A query and the name of its series. `count`: it is the n of the panel's ratio and gets an axis of its own."""

    expr: str
    legend: str = ""
    shape: str = "time_series"
    instant: bool = False
    count: bool = False

    def document(self, index: int) -> Document:
        """The target as Grafana has it."""
        return {
            "refId": chr(ord("A") + index),
            "datasource": dict(SOURCE),
            "editorMode": "code",
            "expr": self.expr,
            "legendFormat": self.legend or "__auto",
            "format": self.shape,
            "instant": self.instant,
            "range": not self.instant,
        }


@dataclass(frozen=True)
class Panel:
    """A picture: `kind` is Grafana's name of it, `unit` one of Grafana's units, sizes are in Grafana's grid of 24.

    `steps`: colours from a value on, the first of which has no value. `defaults` of fields and `options` go in as they
    are.
    """

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    steps: Sequence[tuple[float | None, str]] = ((None, "green"),)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    transformations: Sequence[Mapping[str, Any]] = ()

    def document(self, number: int, x: int, y: int) -> Document:
        """The panel as Grafana has it."""
        defaults: Document = {
            "unit": self.unit,
            "color": {"mode": "palette-classic" if self.kind == "timeseries" else "thresholds"},
            "thresholds": {"mode": "absolute", "steps": [{"value": at, "color": color} for at, color in self.steps]},
            **self.defaults,
        }
        if self.kind == "timeseries":
            defaults["custom"] = {
                "fillOpacity": 25 if self.stacked else 6,
                "showPoints": "never",
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                **defaults.get("custom", {}),
            }
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": dict(SOURCE),
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": list(self._overrides())},
            "options": {**self._options(), **self.options},
            "targets": [query.document(index) for index, query in enumerate(self.queries)],
            "transformations": [dict(each) for each in self.transformations],
        }

    def _overrides(self) -> Iterator[Document]:
        for index, query in enumerate(self.queries):
            if query.count:
                matcher = {"id": "byFrameRefID", "options": chr(ord("A") + index)}
                style = {"custom.axisPlacement": "right", "custom.drawStyle": "points", "custom.fillOpacity": 0}
                wanted = {"unit": "short", **(style if self.kind == "timeseries" else {})}
                yield {"matcher": matcher, "properties": [{"id": key, "value": value} for key, value in wanted.items()]}

    def _options(self) -> Document:
        if self.kind == "timeseries":
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        if self.kind in ("stat", "bargauge", "gauge"):
            return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
        return {}


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it, laid out from left to right."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label of `metric`, or the list `values`."""

    name: str
    label: str
    metric: str = ""
    of: str = ""
    values: Sequence[str] = ()
    chosen: str = ""
    several: bool = False

    def document(self) -> Document:
        """The variable as Grafana has it. One that may be several begins with all of them."""
        text = self.chosen if self.chosen else ("All" if self.several else "")
        value = self.chosen if self.chosen else ("$__all" if self.several else "")
        found: Document = {
            "name": self.name,
            "label": self.label,
            "type": "custom" if self.values else "query",
            "current": {"text": [text], "value": [value]} if self.several else {"text": text, "value": value},
            "multi": self.several,
            "includeAll": self.several,
        }
        if self.several:
            found["allValue"] = ".*"
        if self.values:
            found["query"] = ",".join(self.values)
            found["options"] = [{"text": each, "value": each, "selected": each == text} for each in self.values]
        else:
            query = f"label_values({self.metric}, {self.of})"
            found |= {
                "datasource": dict(SOURCE),
                "definition": query,
                "query": {"query": query, "refId": f"variable-{self.name}"},
                # When the time range changes: a version that is gone today was there last week.
                "refresh": 2,
                "sort": 3 if self.of == "version" else 1,
            }
        return found


@dataclass(frozen=True)
class Board:
    """A dashboard. `uid` is what links name and never changes."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()
    since: str = "now-6h"

    def document(self) -> Document:
        """The dashboard as Grafana reads it from a file."""
        return {
            "uid": self.uid,
            "id": None,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": SCHEMA,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "timezone": "browser",
            "time": {"from": self.since, "to": "now"},
            "refresh": "30s",
            "annotations": {"list": []},
            "links": [
                {
                    "type": "dashboards",
                    "title": "Headgate",
                    "tags": [TAG],
                    "asDropdown": True,
                    "includeVars": True,
                    "keepTime": True,
                }
            ],
            "templating": {"list": [_source(), *(each.document() for each in self.variables)]},
            "panels": list(self._laid_out()),
        }

    def _laid_out(self) -> Iterator[Document]:
        number, y = 1, 0
        for row in self.rows:
            heading = {"x": 0, "y": y, "w": WIDTH, "h": 1}
            yield {
                "id": number,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": heading,
                "panels": [],
            }
            number, y = number + 1, y + 1
            x = height = 0
            for panel in row.panels:
                if x + panel.width > WIDTH:
                    x, y, height = 0, y + height, 0
                yield panel.document(number, x, y)
                number, x, height = number + 1, x + panel.width, max(height, panel.height)
            y += height


def _source() -> Document:
    """Provisioned dashboards cannot ask which data source to use: the first one, until another is chosen."""
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "regex": "",
        "multi": False,
        "includeAll": False,
        "refresh": 1,
    }
