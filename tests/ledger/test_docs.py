"""What docs/ledger.md says is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.ledger.resolve import State
from tests.ledger.rig import DAY, START, Rig, open_segment, write

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ledger.md"


def test_the_page_explains_every_state() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## What becomes of an event")[2].partition("##")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(map(str, State))


def test_the_example_that_reads_labels_runs(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prediction = write(open_segment(rig.data), START - DAY)
    rig.put(True, prediction_id=prediction, received_ns=START - 1)
    rig.step()
    monkeypatch.chdir(rig.data.parent)
    example = re.search(r"<!-- test: reading -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    names: dict[str, object] = {}
    exec(compile(example[1], "docs/ledger.md", "exec"), names)
    assert capsys.readouterr().out == f"{prediction} 0 True 1 of 1\n"
    assert names["known"] == {(prediction, 0): True}
    assert names["cursor"] == 1
