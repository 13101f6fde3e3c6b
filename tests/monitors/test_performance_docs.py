"""The page about performance: its code runs and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "monitoring-performance.md"


def test_the_examples_of_the_page_run_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    printed = capsys.readouterr().out
    assert len(blocks) == 4
    assert printed.startswith("Figure(value=0.75, n=4, low=0.30")
    assert "high=0.95" in printed
    first_alarm = int(printed.splitlines()[1].strip("[]").split()[0])
    assert 2_000 < first_alarm < 2_300


def test_the_page_names_every_monitor_and_every_detector() -> None:
    import monitors.streams as streams

    text = PAGE.read_text(encoding="utf-8")
    for name in (*streams.__all__, "Scores", "ClassScores", "Confusion", "Regression", "LabelFlow", "Sliced"):
        assert name == "Detector" or name in text
