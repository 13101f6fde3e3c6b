"""The text format, held against what prometheus_client writes of the same families."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gateway.telemetry.exposition import exposition

# What is in memory can be written: lone surrogates have no UTF-8, for the library neither.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.floats() | st.integers(-(2**63), 2**63)
names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


class Given(Collector):
    """The same families at every scrape."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        yield from self._families


def theirs(families: Sequence[Metric]) -> bytes:
    """What the library writes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Given(families))
    return generate_latest(registry)


@st.composite
def family(draw: st.DrawFn) -> Metric:
    """A counter, gauge or histogram with up to three labels and up to five samples."""
    labels = draw(
        st.lists(names.filter(lambda name: not name.startswith("__") and name != "le"), max_size=3, unique=True)
    )
    name, text = draw(names), draw(texts)
    samples = draw(st.lists(st.lists(texts, min_size=len(labels), max_size=len(labels)), max_size=5))
    kind = draw(st.sampled_from(("counter", "gauge", "histogram")))
    if kind == "histogram":
        histogram = HistogramMetricFamily(name, text, labels=labels)
        for each in samples:
            histogram.add_metric(each, [("0.1", draw(values)), ("+Inf", draw(values))], draw(values))
        return histogram
    made = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, text, labels=labels)
    for each in samples:
        made.add_metric(each, draw(values))
    return made


@given(st.lists(family(), max_size=3))
def test_families_are_written_byte_for_byte_as_the_library_writes_them(families: list[Metric]) -> None:
    assert exposition(families) == theirs(families)


def test_the_families_of_this_process_are_written_as_the_library_writes_them() -> None:
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    families = list(registry.collect())
    assert b"process_cpu_seconds_total" in exposition(families)
    assert exposition(families) == theirs(families)


def test_a_family_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"build: expected a family of the types counter, gauge, histogram, got info"):
        exposition([InfoMetricFamily("build", "", {"version": "1"})])


def test_a_sample_with_a_time_of_its_own_is_refused() -> None:
    family = Metric("old", "", "gauge")
    family.add_sample("old", {}, 1.0, timestamp=5.0)
    with pytest.raises(ValueError, match="old: samples with a time are not written"):
        exposition([family])
