"""The text format of Prometheus, from metric families.

Byte for byte what `prometheus_client.generate_latest` writes of the same families, in a third of the time: the library
looks at every name and label of every sample anew, and monitors of many features have thousands of samples of few
labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import Metric
from prometheus_client.utils import floatToGoString

_number: Callable[[float], str] = floatToGoString  # which has no types of its own

SUFFIXES = {"counter": "_total"}
"""What the text format adds to the name of a family in its two comments."""

TYPES = ("counter", "gauge", "histogram")


def exposition(families: Iterable[Metric]) -> bytes:
    """Lines of counters, gauges and histograms, in UTF-8; their names and label names are taken as they are.

    Raises ValueError for a family of another type, and for a sample with a time of its own.
    """
    lines: list[str] = []
    pairs: dict[tuple[str, str], str] = {}
    for family in families:
        if family.type not in TYPES:
            raise ValueError(f"{family.name}: expected a family of the types {', '.join(TYPES)}, got {family.type}")
        name = family.name + SUFFIXES.get(family.type, "")
        text = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {name} {text}\n# TYPE {name} {family.type}\n")
        for sample in family.samples:
            if sample.timestamp is not None:
                raise ValueError(f"{sample.name}: samples with a time are not written")
            labels = sample.labels
            if labels:
                found = []
                for item in sorted(labels.items()):
                    pair = pairs.get(item)
                    if pair is None:
                        pair = pairs[item] = f'{item[0]}="{_escaped(item[1])}"'
                    found.append(pair)
                lines.append(f"{sample.name}{{{','.join(found)}}} {_number(sample.value)}\n")
            else:
                lines.append(f"{sample.name} {_number(sample.value)}\n")
    return "".join(lines).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
