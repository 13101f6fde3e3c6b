"""The commands of docs/feedback.md do what the page says, as printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.feedback.rules import FeedbackRule
from gateway.models.config import parse
from gateway.settings import TABLE
from tests.onnx_models import identity, put
from tests.servers import Server

PAGE = (Path(__file__).parents[2] / "docs" / "feedback.md").read_text()
ROW = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2.5, 3, 4]}]}


def block(name: str) -> tuple[str, str]:
    """The block behind a marker, and the one that follows it, if there is one."""
    match = re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```\n(?:\n```\w+\n(.*?)```)?", PAGE, re.DOTALL)
    assert match is not None, name
    return match[1], match[2] or ""


class Reader:
    """Somebody who tries the page: a server with its model, a prediction, and a folder for files."""

    def __init__(self, scratch: Path) -> None:
        put(scratch / "models", "flights", 1, identity())
        (scratch / "models" / "flights" / "model.toml").write_text(block("declarations")[0])
        self.server = Server(scratch / "models", scratch / "server", "--quiet-s", "0")
        self.data = scratch / "server" / "data"
        self.folder = scratch
        self.variables = {"PREDICTION": self.server.infer("flights", ROW)["parameters"]["prediction_id"], "KEY": "k"}

    def run(self, name: str) -> str:
        """What a command prints."""
        command = block(name)[0].replace("http://127.0.0.1:8080", self.server.url)
        command = command.replace("headgate ", f"{sys.executable} -m gateway ")
        environment = {**os.environ, **self.variables, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, cwd=self.folder, env=environment, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """One reader of the whole page."""
    made = Reader(tmp_path_factory.mktemp("docs"))
    yield made
    made.server.stop()


def same(got: Any, printed: Any) -> bool:
    """Equal, where ``...`` in print stands for any text."""
    if printed == "...":
        return isinstance(got, str) and got != ""
    if isinstance(printed, dict):
        return got.keys() == printed.keys() and all(same(got[key], printed[key]) for key in printed)
    if isinstance(printed, list):
        return len(got) == len(printed) and all(map(same, got, printed))
    return bool(got == printed)


@pytest.mark.parametrize("name", ["put", "refused", "batch", "link"])
def test_a_command_is_answered_as_printed(reader: Reader, name: str) -> None:
    got = json.loads(reader.run(name))
    assert same(got, json.loads(block(name)[1])), got


def test_an_event_is_taken_back_as_printed(reader: Reader) -> None:
    reader.variables |= {"KEY": "another", "FEEDBACK": ""}
    reader.variables["FEEDBACK"] = json.loads(reader.run("put"))["feedback_id"]
    assert same(json.loads(reader.run("delete")), json.loads(block("delete")[1]))


def test_a_file_is_sent_as_printed(reader: Reader) -> None:
    assert reader.run("file") == block("file")[1]


def test_the_logs_are_read_as_printed(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    reader.run("put")
    script = f"from pathlib import Path\ndata = Path({str(reader.data)!r})\n" + block("read")[0]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "late True arrivals\n" in done.stdout


def test_every_key_of_a_declaration_has_its_row() -> None:
    table = PAGE.partition("| key |")[2].partition("\n\n")[0]
    keys = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.partition(" | ")[0])}
    assert set(FeedbackRule.__struct_fields__) <= keys
    assert set(parse(block("declarations")[0].encode()).feedback) == {"late", "stars", "delay"}


def test_every_setting_that_the_page_names_is_one() -> None:
    names = {row.name for row in TABLE}
    assert {"max_feedback_bytes", "feedback_keys", "public_url"} <= names
    assert all(name in PAGE for name in ("max_feedback_bytes", "feedback_keys", "public_url"))
