"""What the rounds of a benchmark come to: ratios, medians, verdicts, the table and its place in a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from loadtests.cases import REFERENCES, Case

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one side. `value` is what the row measures: rows per second, microseconds or bytes.

    `cpu_us` is the server's CPU time a request, where it could be read; `generator_share` how much of its core the
    load generator needed.
    """

    value: float
    p50_us: float | None = None
    p99_us: float | None = None
    cpu_us: float | None = None
    generator_share: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """All rounds of a row: product and reference, pairwise from the same round. `failure` says why there are fewer."""

    case: Case
    product: tuple[Sample, ...] = ()
    reference: tuple[Sample, ...] = ()
    failure: str = ""
    skipped: str = ""
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Product over reference, one for each round."""
        pairs = zip(self.product, self.reference, strict=True)
        return [ours.value / theirs.value for ours, theirs in pairs]

    @property
    def ratio(self) -> float | None:
        """The median of the ratios; None without rounds."""
        return median(self.ratios) if self.product else None

    @property
    def verdict(self) -> str:
        """reached, held, below, FAILED, skipped, or nothing for a row without numbers to hold."""
        if self.failure:
            return "FAILED"
        if self.ratio is None:
            return "skipped"
        if self.case.hold is None:
            return ""
        sign = -1 if self.case.less_is_better else 1
        if self.case.reach is not None and sign * self.ratio >= sign * self.case.reach:
            return "reached"
        return "held" if sign * self.ratio >= sign * self.case.hold else "below"

    @property
    def is_bad(self) -> bool:
        """Whether the benchmark as a whole has failed because of this row."""
        return self.verdict in ("FAILED", "below")

    def document(self) -> dict[str, Any]:
        """The row as JSON."""
        return {
            **asdict(self.case),
            "title": self.case.title,
            "verdict": self.verdict,
            "ratio": self.ratio,
            "ratios": self.ratios if not self.failure else [],
            "product": [asdict(sample) for sample in self.product],
            "reference_runs": [asdict(sample) for sample in self.reference],
            "failure": self.failure,
            "skipped": self.skipped,
            "note": self.note,
        }


HEADS = ("case", "against", "ratio", "spread", "hold", "reach", "", "Headgate", "reference", "CPU us")


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table, columns padded so that it also reads well in a terminal.

    The spread is the lowest and highest ratio of a round; CPU is the servers' time a request, product / reference.
    """
    rows = [HEADS, *(_cells(result) for result in results)]
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(HEADS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def remarks(results: Sequence[Result]) -> list[str]:
    """What the table cannot hold: why rows failed or were left out, and where the load generator was the limit."""
    found: list[str] = []
    for result in results:
        for kind, text in (("FAILED", result.failure), ("skipped", result.skipped), ("note", result.note)):
            if text:
                found.append(f"{result.case.key}: {kind}: {text}")
        shares = [sample.generator_share or 0.0 for sample in result.product]
        if shares and result.case.measure == "rate" and median(shares) > 0.9:
            found.append(
                f"{result.case.key}: the load generator used {median(shares):.0%} of its core: it is the limit"
            )
    return found


def replace_between_markers(document: str, text: str) -> str:
    """`document` with `text` between the two marker comments. Raises ValueError where they are not there once each."""
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        raise ValueError(f"the document must hold {BEGIN} and then {END}, once each")
    before, _, rest = document.partition(BEGIN)
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{rest.partition(END)[2]}"


def _cells(result: Result) -> tuple[str, ...]:
    case = result.case
    ratio = "" if result.ratio is None else f"{result.ratio:.3f}"
    spread = f"{min(result.ratios):.3f}-{max(result.ratios):.3f}" if result.product else ""
    return (
        case.title,
        REFERENCES[case.reference],
        ratio,
        spread,
        _target(case.hold),
        _target(case.reach),
        result.verdict,
        _value(case, result.product),
        _value(case, result.reference),
        f"{_cpu(result.product)} / {_cpu(result.reference)}" if result.product else "",
    )


def _target(number: float | None) -> str:
    return "" if number is None else f"{number:g}"


def _value(case: Case, samples: Sequence[Sample]) -> str:
    """The median with its unit."""
    if not samples:
        return ""
    middle = median(sample.value for sample in samples)
    if case.measure == "rate":
        return f"{middle:,.0f}/s" if middle >= 1000 else f"{middle:.1f}/s"
    return f"{middle:,.0f} us" if case.measure == "p50" else f"{middle / 1e6:,.1f} MB"


def _cpu(samples: Sequence[Sample]) -> str:
    known = [sample.cpu_us for sample in samples if sample.cpu_us is not None]
    return f"{median(known):,.1f}" if known else "-"
