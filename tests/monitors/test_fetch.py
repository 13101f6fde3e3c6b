"""What labels are compared with: the same values from a segment that is written and from the archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.journal import archive, shelves
from gateway.journal.reader import Locator, Segment
from gateway.ledger.reading import Ledger
from monitors.fetch import Fetcher, Said, columns_of
from monitors.service import Service, Subject
from monitors.task import Task
from tests.ledger.rig import START, open_segment, write
from tests.monitors.test_labelled import RULE, TASK, Watched

NAMES = ("x[0]", "x[1]", "customer", "city")


def values(found: dict[tuple[str, int], Said | str]) -> dict[tuple[str, int], object]:
    """What was fetched, to be compared."""
    return {key: each if isinstance(each, str) else (each.score.tolist(), each.features) for key, each in found.items()}


@pytest.mark.parametrize("names", [(), NAMES[:2], NAMES])
def test_scores_and_features_of_every_row_are_the_same_before_and_after_archiving(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    segment = open_segment(tmp_path)
    one = write(segment, START, 3, customer=[5, 6, 7], city=["Oslo", "Rome", "Bern"], probability=[0.25, 0.5, 0.75])
    two = write(segment, START, customer=[8], city=["Bari"], probability=[0.125])
    failed = write(segment, START, status=500, city=["Ulm"])
    segment.inputs["x"][:4] = np.arange(8).reshape(4, 2)
    wanted = [(one, 2), (two, 0), (one, 0), (failed, 0), (one, 1)]
    before = values(Fetcher(tmp_path, Locator(tmp_path)).fetch(TASK, wanted, names))
    features = {"x[0]": 4.0, "x[1]": 5.0, "customer": 7, "city": "Bern"}
    assert before[one, 2] == ([0.75], {name: features[name] for name in names})
    assert [before[each][0] for each in wanted if each[0] != failed] == [[0.75], [0.125], [0.25], [0.5]]  # type: ignore[index]
    assert before[failed, 0] == "the prediction failed"
    segment.finish()
    archive.write(Segment.open(segment.path), tmp_path / shelves.FOLDER)
    segment.path.unlink()
    assert values(Fetcher(tmp_path, Locator(tmp_path)).fetch(TASK, wanted, names)) == before


def test_what_cannot_be_fetched_says_why(tmp_path: Path) -> None:
    segment = open_segment(tmp_path)
    name = write(segment, START, probability=[0.5])
    fetcher = Fetcher(tmp_path, Locator(tmp_path))
    elsewhere = open_segment(tmp_path / "elsewhere")
    unknown = f"{elsewhere.spec.prefix}{0:08x}"
    other = Task("late", "q", (False, True))
    assert fetcher.fetch(TASK, [("nonsense", 0), (unknown, 0), (name[:28] + "00000009", 0)]) == {
        ("nonsense", 0): "no prediction has an id of this form",
        (unknown, 0): "the prediction is not kept any more",
        (name[:28] + "00000009", 0): "the prediction is not kept any more",
    }
    assert fetcher.fetch(other, [(name, 0)]) == {(name, 0): "no value of the output 'q' is kept"}
    wide = Task("late", "p", ("a", "b", "c"))
    assert fetcher.fetch(wide, [(name, 0)]) == {(name, 0): "the output 'p' does not fit"}
    (said,) = fetcher.fetch(TASK, [(name, 0)], ["unheard"]).values()
    assert isinstance(said, Said)
    assert said.features is None


def test_features_row_by_row_become_columns() -> None:
    found = columns_of([{"a": 1, "b": "x"}, None, {"a": 2.5, "b": None}], ["a", "b"])
    assert found["a"].tolist()[::2] == [1.0, 2.5]
    assert np.isnan(found["a"][1])
    assert found["b"].tolist() == ["x", None, None]


def test_a_version_that_gets_no_more_rows_still_gets_its_labels_and_one_that_is_gone_is_not_shown(
    tmp_path: Path,
) -> None:
    watched = Watched(tmp_path / "data")
    one, two = watched.predict(2)
    watched.rig.put(True, prediction_id=one)
    watched.step()
    watched.service.checkpoint()
    watched.segment.finish()
    archive.write(Segment.open(watched.segment.path), watched.rig.data / shelves.FOLDER)
    watched.segment.path.unlink()
    watched.rig.put(True, prediction_id=two)
    watched.rig.step()
    watched.service = watched.another()
    watched.service.step()
    watched.check({one: True, two: True})
    assert watched.judged.windows()["score"].value()["score_mean"]["n"] == 0, "learning is not saved"
    ledger = Ledger(watched.rig.url)
    gone = Service(watched.rig.data, lambda *_: Subject(RULE, None), watched.told.append, ledger=ledger)
    gone.step()
    assert gone.watchers == {}
    gone.stop()
    watched.close()
