"""The README's commands do what the README says, as printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(ROOT / "examples", tmp_path_factory.mktemp("readme"))
    yield running
    running.stop()


def example(name: str) -> tuple[str, Any]:
    """The command behind a marker, and the reply printed below it."""
    match = re.search(rf"<!-- test: {name} -->\n```sh\n(.*?)```\n\n```json\n(.*?)```", README, re.DOTALL)
    assert match is not None, name
    return match[1], json.loads(match[2])


def same(got: Any, printed: Any) -> bool:
    """Equal, where ``...`` in print stands for anything and numbers may differ in the last digits."""
    if printed == "...":
        return isinstance(got, str) and got != ""
    if isinstance(printed, dict):
        return got.keys() == printed.keys() and all(same(got[key], printed[key]) for key in printed)
    if isinstance(printed, list):
        return len(got) == len(printed) and all(map(same, got, printed))
    if isinstance(printed, float):
        return got == pytest.approx(printed, rel=1e-5)
    return bool(got == printed)


@pytest.mark.parametrize("name", re.findall(r"<!-- test: (.*?) -->", README))
def test_a_curl_of_the_readme_gets_the_reply_printed_below_it(name: str, server: Server) -> None:
    command, printed = example(name)
    command = command.replace("localhost:8080", server.address)
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60, check=True)
    got = json.loads(done.stdout)
    assert same(got, printed), got


def test_the_python_of_the_readme_runs_against_the_server(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tritonclient.http", reason="tritonclient is in the extra dev")
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code.replace("localhost:8080", server.address)],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(b"[[0."), done.stdout


def test_the_alias_commands_of_the_readme_move_the_champion(server: Server) -> None:
    block = next(block for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "aliases/champion" in block)
    for command in block.strip().splitlines():
        done = subprocess.run(
            ["sh", "-c", command.replace("localhost:8080", server.address)], capture_output=True, timeout=60, check=True
        )
        assert "error" not in json.loads(done.stdout)
    assert server.json("GET", "/v2/models/flights/versions/champion")["versions"] == ["2"]


def test_every_command_of_the_readme_exists() -> None:
    from gateway.cli import main

    for command in sorted(set(re.findall(r"^headgate ((?:model )?[a-z]+)", README, re.MULTILINE))):
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--help"])
        assert ended.value.code == 0


def test_every_page_that_the_readme_names_is_there() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
