"""The rows of the benchmark: what is sent, what it is measured against, and the numbers to hold.

A ratio is product over reference, taken in the same round. `hold` is what must not be lost, `reach` what is aimed at;
rows without them inform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reference = Literal["echo", "fastapi", "onnxruntime", "one-worker", "early", "unjournaled", "unmonitored"]
Measure = Literal["rate", "p50", "memory"]
Form = Literal["json", "binary", "named"]

REFERENCES: dict[Reference, str] = {
    "echo": "raw uvicorn echo",
    "fastapi": "FastAPI + onnxruntime",
    "onnxruntime": "onnxruntime alone",
    "one-worker": "one worker",
    "early": "early in its life",
    "unjournaled": "without a journal",
    "unmonitored": "without monitors",
}

PRODUCTS: dict[Reference, str] = {
    "one-worker": "two-workers",
    "unmonitored": "one-worker",
    "unjournaled": "journal-alone",
}
"""What is measured against these references, in place of the product."""

SHARED = ("one-worker", "unmonitored")
"""References where both sides share two cores with the load."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row. `rows` are rows a request, `connections` send in a closed loop; `bodies` different requests take turns.

    `measure`: rows per second, the median latency, or the private memory of the worker; for the last two less is
    better. `traced` requests carry a header that differs from one to the next. `batches`: those that onnxruntime
    alone is tried with, of which the best counts. `stretch`: runs are that many times as long, because what is being
    worked on when a run ends is not counted, which for long requests is much of a short run.
    """

    key: str
    model: str
    form: Form
    connections: int
    reference: Reference = "echo"
    rows: int = 1
    measure: Measure = "rate"
    hold: float | None = None
    reach: float | None = None
    bodies: int = 64
    batches: tuple[int, ...] = ()
    traced: bool = False
    stretch: int = 1

    @property
    def title(self) -> str:
        """The row's name in tables."""
        form = {"json": "JSON", "binary": "binary", "named": "JSON with an id"}[self.form]
        rows = "" if self.rows == 1 else f", {self.rows} rows"
        traced = ", traced" if self.traced else ""
        what = {"rate": "", "p50": ", p50", "memory": ", memory"}[self.measure]
        return f"{self.model}, {form}{rows}{traced}, c = {self.connections}{what}"

    @property
    def path(self) -> str:
        """The route."""
        return f"/v2/models/{self.model}/infer"

    @property
    def less_is_better(self) -> bool:
        """Whether a lower ratio is the better one."""
        return self.measure != "rate"


CASES = (
    Case("tiny-json-64", "tiny", "json", 64, hold=1.6, reach=2.0),
    Case("tiny-json-256", "tiny", "json", 256, hold=1.6, reach=2.0),
    Case("tiny-json-16", "tiny", "json", 16, hold=1.1, reach=1.5),
    Case("tiny-json-1", "tiny", "json", 1, measure="p50", hold=1.25, reach=1.0),
    Case("trees-json-64", "trees", "json", 64, hold=1.2, reach=1.5),
    Case("trees-binary-64", "trees", "binary", 64, hold=1.5, reach=1.8),
    Case("mlp-json-64", "mlp", "json", 64, hold=0.55, reach=0.65),
    Case("mlp-binary-64", "mlp", "binary", 64, hold=0.7, reach=0.85),
    Case("flights-json-64", "flights", "json", 64, hold=0.5, reach=0.8),
    Case(
        "trees-binary-16-rows", "trees", "binary", 64, "onnxruntime", rows=16, hold=0.35, reach=0.5,
        batches=(1, 4, 16, 64, 256, 1024),
    ),
    Case(
        "conv-binary", "conv", "binary", 8, "onnxruntime", hold=0.95, reach=0.98, bodies=16, batches=(1, 4, 8),
        stretch=8,
    ),
    Case("mlp-two-workers", "mlp", "json", 64, "one-worker", hold=1.4, reach=1.55),
    Case("journal-64", "tiny", "json", 64, "unjournaled", hold=0.97),
    Case("journal-1", "tiny", "json", 1, "unjournaled", measure="p50", hold=1.05),
    Case("journal-mlp", "mlp", "binary", 64, "unjournaled"),
    Case("journal-flights", "flights", "json", 64, "unjournaled"),
    Case("monitors-64", "tiny", "json", 64, "unmonitored", hold=0.95),
    Case("tiny-json-64-traced", "tiny", "json", 64, traced=True),
    Case("tiny-named-64", "tiny", "named", 64),
    Case("tiny-binary-64", "tiny", "binary", 64),
    Case("trees-json-16-rows", "trees", "json", 64, rows=16),
    Case("flights-json-1", "flights", "json", 1, measure="p50"),
    Case("identity-json-64", "identity", "json", 64),
    Case("conv-json", "conv", "json", 8, "onnxruntime", bodies=8, batches=(1, 4, 8), stretch=3),
    Case("tiny-fastapi", "tiny", "json", 64, "fastapi"),
    Case("trees-fastapi", "trees", "json", 64, "fastapi"),
    Case("mlp-fastapi", "mlp", "json", 64, "fastapi"),
)  # fmt: skip

MEMORY = Case("tiny-memory", "tiny", "json", 64, "early", measure="memory", hold=1.02, reach=1.01)
"""Private memory of the worker after all requests against that after the first hundredth of them."""
