"""The rows of the benchmark: the numbers to hold, and that every row can be run."""

from __future__ import annotations

from itertools import product

import pytest

from loadtests import bench, matrix, profile_path
from loadtests.bodies import WIDTHS
from loadtests.cases import CASES, MEMORY, PRODUCTS, REFERENCES, SHARED
from loadtests.processes import ROOT

TO_HOLD = {
    "tiny-json-64": ("rate", "echo", 1.6, 2.0),
    "tiny-json-256": ("rate", "echo", 1.6, 2.0),
    "tiny-json-16": ("rate", "echo", 1.1, 1.5),
    "tiny-json-1": ("p50", "echo", 1.25, 1.0),
    "trees-json-64": ("rate", "echo", 1.2, 1.5),
    "trees-binary-64": ("rate", "echo", 1.5, 1.8),
    "mlp-json-64": ("rate", "echo", 0.55, 0.65),
    "mlp-binary-64": ("rate", "echo", 0.7, 0.85),
    "flights-json-64": ("rate", "echo", 0.5, 0.8),
    "trees-binary-16-rows": ("rate", "onnxruntime", 0.35, 0.5),
    "conv-binary": ("rate", "onnxruntime", 0.95, 0.98),
    "mlp-two-workers": ("rate", "one-worker", 1.4, 1.55),
    "journal-64": ("rate", "unjournaled", 0.97, None),
    "journal-1": ("p50", "unjournaled", 1.05, None),
    "monitors-64": ("rate", "unmonitored", 0.95, None),
    "tiny-memory": ("memory", "early", 1.02, 1.01),
}


def test_the_numbers_to_hold_cannot_slip() -> None:
    held = {case.key: (case.measure, case.reference, case.hold, case.reach) for case in (*CASES, MEMORY) if case.hold}
    assert held == TO_HOLD


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_every_row_can_be_run(case: object) -> None:
    assert case in CASES
    assert isinstance(case, type(MEMORY))
    assert case.model == "flights" or case.model in WIDTHS
    assert bool(case.batches) == (case.reference == "onnxruntime")
    # FastAPI's model takes lists of floats, and onnxruntime alone is given floats.
    assert case.model != "flights" or case.reference in ("echo", "unjournaled")


def test_what_shares_the_cores_with_the_load_is_measured_against_what_shares_them_too() -> None:
    assert set(SHARED) <= PRODUCTS.keys() <= REFERENCES.keys()
    assert PRODUCTS["unmonitored"] == "one-worker"


def test_keys_and_titles_tell_rows_apart() -> None:
    rows = (*CASES, *matrix.missing(CASES))
    assert len({case.key for case in rows}) == len(rows)
    assert len({(case.title, case.reference) for case in rows}) == len(rows)


def test_with_the_matrix_every_model_is_measured_in_both_forms_by_rows_and_connections() -> None:
    rows = matrix.missing(CASES)
    assert all(case.hold is None and case.reach is None for case in rows)
    there = {(case.model, case.form, case.rows, case.connections) for case in (*CASES, *rows)}
    for model in ("tiny", "trees", "mlp", "flights"):
        assert {place[1:] for place in there if place[0] == model} >= set(
            product(("json", "binary"), (1, 16), (1, 16, 64, 256))
        )
    assert there >= set(product(["conv"], ("json", "binary"), [1], (1, 16)))
    assert matrix.missing((*CASES, *rows)) == ()


@pytest.mark.parametrize(
    ("arguments", "grows"),
    [
        ([], True),
        (["--quick"], False),
        (["--only", "tiny-json-1"], False),
        (["--quick", "--memory"], True),
        (["--no-memory"], False),
    ],
)
def test_the_memory_of_the_worker_is_watched_unless_it_was_asked_for_less(arguments: list[str], grows: bool) -> None:
    assert bench.watches_memory(bench._parser().parse_args(arguments)) == grows


def test_everything_measured_is_written_where_git_does_not_look() -> None:
    written = bench._parser().parse_args([]).json.relative_to(ROOT)
    assert f"/{written.parent}/" in (ROOT / ".gitignore").read_text().splitlines()


def test_rows_are_chosen_by_key_or_pattern() -> None:
    assert bench.select(CASES, []) == list(CASES)
    assert [case.key for case in bench.select(CASES, ["tiny-json-1", "mlp-*-64"])] == [
        *("tiny-json-1", "mlp-json-64", "mlp-binary-64"),
    ]


def test_an_unknown_row_ends_with_the_list_of_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--only", "nothing"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "tiny-json-64" in error


def test_without_the_load_generator_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("loadtests.wrk.shutil.which", lambda _: None)
    assert bench.main(["--only", "tiny-json-64"]) == 2
    assert capsys.readouterr().err == "bench: wrk is missing; install the package of that name (apt-get install wrk)\n"


def test_every_body_of_the_benchmark_is_profiled() -> None:
    profiled = {(model, form) for model, form, _ in profile_path.LOADS}
    assert {(case.model, case.form) for case in CASES} <= profiled
