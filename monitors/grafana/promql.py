"""PromQL: the few shapes of query that dashboards and rules are made of, so that each is right in one place.

Ratios divide sums by sums, never average quotients, and are empty where nothing was asked, instead of NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

INTERVAL = "$__rate_interval"
"""What Grafana fills in: at least four scrapes, so that a rate never lacks its two samples."""

DATA = ('job="$job"', 'instance=~"$instance"')
"""What the data port counts: one job, so that no request counts twice where both ports are scraped."""

CONTROL = ('job="$control"', 'instance=~"$instance"')
"""What only the admin port has: monitors and ledger."""

MODEL = ('model=~"$model"',)
VERSION = (*MODEL, 'version=~"$version"')


def select(metric: str, *matchers: str, over: str = "") -> str:
    """A selector; `over` is the range of a range vector."""
    inside = ",".join(matchers)
    return f"{metric}{{{inside}}}" + (f"[{over}]" if over else "")


def total(what: str, by: Sequence[str] = ()) -> str:
    """The sum, kept apart by some labels."""
    return f"sum by ({', '.join(by)}) ({what})" if by else f"sum({what})"


def rate(metric: str, *matchers: str, by: Sequence[str] = (), over: str = INTERVAL) -> str:
    """Per second, summed: of counters alone."""
    return total(f"rate({select(metric, *matchers, over=over)})", by)


def count(metric: str, *matchers: str, by: Sequence[str] = (), over: str = INTERVAL) -> str:
    """How many there were: the n that stands beside a ratio."""
    return total(f"increase({select(metric, *matchers, over=over)})", by)


def ratio(part: str, whole: str) -> str:
    """`part / whole`: 0 where the whole has something and the part has no series, empty where the whole has nothing."""
    return f"({part} or {whole} * 0) / ({whole} > 0)"


def quantile(q: float, metric: str, *matchers: str, by: Sequence[str] = (), over: str = INTERVAL) -> str:
    """A quantile from the summed buckets of a histogram; empty where nothing was observed."""
    return f"histogram_quantile({q}, {rate(metric + '_bucket', *matchers, by=('le', *by), over=over)}) >= 0"


def mean(metric: str, *matchers: str, by: Sequence[str] = (), over: str = INTERVAL) -> str:
    """The mean of a histogram: summed seconds by summed observations."""
    whole = rate(metric + "_count", *matchers, by=by, over=over)
    return f"{rate(metric + '_sum', *matchers, by=by, over=over)} / ({whole} > 0)"
