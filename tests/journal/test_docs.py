"""The commands and programs of docs/journal.md run as they stand there, on predictions of the model tiny."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from gateway.journal.arrow import batches
from gateway.journal.keeper import Keeper
from gateway.settings import TABLE, Settings
from tests.journal.rig import Gateway, document, load, normal

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "journal.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and data: 300 predictions in the archive, 20 in a segment."""
    root = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "examples" / "tiny", root / "models" / "tiny")
    for rows in (300, 20):
        gateway = Gateway(root / "data", load(root / "models", "tiny", 1))
        gateway.send([[document(x=normal(rows, 30, rows))]], "tiny")
        gateway.close()
        if rows == 300:
            keeper = Keeper(Settings(data=root / "data"))
            keeper.step()
            keeper.step()
    return root


def run(command: list[str], folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_programs_and_commands() -> None:
    assert len(PROGRAMS) == 3
    assert len(COMMANDS) == 4


SAID = [r"^tiny 1 20 dict_keys\(\['x'\]\)$", r"^│ +1 │ +300 │", r"^\(300, 30\) [01]\.\d+$"]
"""What the programs print: of the 20 predictions in the segment, and twice of the 300 in the archive."""


@pytest.mark.parametrize(
    ("program", "expected"), [*zip(PROGRAMS, SAID, strict=True)], ids=["segments", "duckdb", "pandas"]
)
def test_a_program_of_the_page_runs(program: str, expected: str, place: Path) -> None:
    assert re.search(expected, run([sys.executable, "-c", program], place), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command: str, place: Path) -> None:
    said = run([sys.executable, "-m", "gateway", *command.split()[1:]], place)
    assert re.search(r"\b320\b", said)
    if "training.parquet" in command:
        assert len(pd.read_parquet(place / "training.parquet")) == 320


def test_the_page_names_every_column_and_setting_of_the_archive(place: Path) -> None:
    from gateway.journal.columns import FIELDS
    from gateway.journal.reader import Segment, segments

    section = PAGE.partition("## The archive")[2]
    for name in FIELDS.names:
        assert f"`{name}`" in section
    settings = [row.name for row in TABLE if row.name.startswith("journal_") and re.search("disk|days", row.name)]
    assert len(settings) == 4
    for name in settings:
        assert f"`{name}`" in section
    (segment,) = map(Segment.open, segments(place / "data" / "journal"))
    assert {name.partition("_")[0] for name in next(iter(batches(segment))).schema.names[len(FIELDS) :]} == {
        "input",
        "output",
    }
