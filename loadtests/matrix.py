"""The matrix: every model by form, rows a request and connections. What has no row of its own gets one that informs.

The convolutional net is left out where that would say nothing: sixteen of its rows are more than a body may hold, and
with 64 connections it is asked for more than a second of work at once, which it refuses as it should.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

from loadtests.cases import Case, Form, Measure

MODELS = ("tiny", "trees", "mlp", "flights")
FORMS: tuple[Form, ...] = ("json", "binary")
ROWS = (1, 16)
CONNECTIONS = (1, 16, 64, 256)
CONV_CONNECTIONS = (1, 16)


def missing(cases: Iterable[Case]) -> tuple[Case, ...]:
    """The rows of the matrix that `cases` does not have. With one connection it is the latency that is measured."""
    there = {_place(case) for case in cases if case.reference in ("echo", "onnxruntime") and not case.traced}
    return tuple(case for case in _all() if _place(case) not in there)


def _all() -> Iterator[Case]:
    for model, form, rows, connections in product(MODELS, FORMS, ROWS, CONNECTIONS):
        many = "" if rows == 1 else f"-{rows}-rows"
        measure: Measure = "p50" if connections == 1 else "rate"
        yield Case(f"{model}-{form}{many}-{connections}", model, form, connections, rows=rows, measure=measure)
    for form, connections in product(FORMS, CONV_CONNECTIONS):
        key = f"conv-{form}-{connections}"
        yield Case(key, "conv", form, connections, "onnxruntime", bodies=8, batches=(1, 4, 8), stretch=3)


def _place(case: Case) -> tuple[str, str, int, int]:
    return case.model, case.form, case.rows, case.connections
