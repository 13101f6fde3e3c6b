"""Objectives: what the dashboards and rules of an installation hold against: jobs, targets of the SLOs, runbooks."""

from __future__ import annotations

from dataclasses import dataclass

LATENCIES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Bounds of buckets of the latency histogram: an objective between two of them could only be guessed at."""


@dataclass(frozen=True)
class Objectives:
    """`job`, `control`: the scrape jobs of the data port and the admin port.

    `availability`: share of requests, those that are the client's fault left out, that are answered. `latency`: share
    of answered requests that take at most `latency_s`. `docs`: where the documentation is, for links to runbooks.
    Raises ValueError where a share is not between 0 and 1, or `latency_s` is no bound of a bucket.
    """

    job: str = "headgate"
    control: str = "headgate-control"
    availability: float = 0.999
    latency: float = 0.99
    latency_s: float = 0.1
    docs: str = "docs"

    def __post_init__(self) -> None:
        for name, share in (("availability", self.availability), ("latency", self.latency)):
            if not 0 < share < 1:
                raise ValueError(f"{name} must be a share between 0 and 1, such as 0.999, got {share:g}")
        if self.latency_s not in LATENCIES_S:
            raise ValueError(f"the latency must be one of {', '.join(map(str, LATENCIES_S))} s, got {self.latency_s:g}")
        for name, job in (("job", self.job), ("control job", self.control)):
            if not job or not all(each.isalnum() or each in "_-./:" for each in job):
                raise ValueError(f"the {name} must be letters, digits and _-./: alone, got {job!r}")

    @property
    def bucket(self) -> str:
        """The matcher of the bucket that ends at the objective."""
        return f'le="{self.latency_s}"'
