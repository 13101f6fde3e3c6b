"""The README's commands do what the README says, as printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.onnx_models import constant_answer, put
from tests.servers import Server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    **dict.fromkeys(("HEADGATE_PORT", "HEADGATE_ADMIN_PORT"), "0"),
}
"""Where commands are typed: `headgate` is on the path, and a server takes free ports."""


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


def block(words: str) -> list[str]:
    """The lines of the one shell block that holds these words, without their comments."""
    (found,) = (each for each in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if words in each)
    return [re.sub(r"\s+# .*", "", line) for line in found.strip().splitlines()]


def typed(command: str, cwd: Path = ROOT) -> str:
    """What a command prints that is typed in a folder, with the environment's programs on the path."""
    done = subprocess.run(["sh", "-c", command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@contextmanager
def typed_server(command: str, cwd: Path) -> Iterator[str]:
    """The address at which a server answers that is started by a command, until it is left."""
    words = shlex.split(command)
    with subprocess.Popen(words, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().decode().rpartition("http://")[2].strip()
        finally:
            server.terminate()


def test_the_alias_commands_of_the_readme_move_the_champion(server: Server) -> None:
    for command in block("aliases/champion"):
        assert "error" not in json.loads(typed(command.replace("localhost:8080", server.address)))
    assert server.json("GET", "/v2/models/flights/versions/champion")["versions"] == ["2"]


def test_the_commands_for_a_model_of_ones_own_serve_it_and_its_next_version(tmp_path: Path) -> None:
    serve, add, check, list_, doctor = block("headgate model add")
    put(tmp_path / "models", "fraud", 1, constant_answer(1))
    (tmp_path / "new.onnx").write_bytes(constant_answer(2))
    row = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    (tmp_path / "samples.json").write_text(json.dumps([{"inputs": [row]}]))
    with typed_server(serve, tmp_path) as address:
        assert typed(add, tmp_path) == "added fraud version 2\n"
        assert typed(check, tmp_path).startswith("fraud version 2 passed (verified)")
        assert [line.split()[:2] for line in typed(list_, tmp_path).splitlines()[1:]] == [
            ["fraud", "1"],
            ["fraud", "2"],
        ]
        assert typed(doctor, tmp_path)
        ask = f"curl -s {address}/v2/models/fraud/infer -d '{json.dumps({'inputs': [row]})}'"
        deadline = time.monotonic() + 60
        while json.loads(typed(ask)).get("model_version") != "2":
            assert time.monotonic() < deadline, "the added version does not answer"


def test_the_curls_for_a_prediction_find_it_label_it_and_show_what_is_watched(server: Server) -> None:
    curls = [line for line in block("/v1/predictions/ID") if line.startswith("curl")]
    asked, _ = example("the-flights-example")
    id_ = json.loads(typed(asked.replace("localhost:8080", server.address)))["parameters"]["prediction_id"]
    addresses = {"localhost:8080": server.address, "localhost:8081": server.admin_url.removeprefix("http://")}

    def answer(command: str) -> Any:
        for printed, real in addresses.items():
            command = command.replace(printed, real)
        return json.loads(typed(re.sub(r"\bID\b", id_, command)))

    prediction, feedback, monitors, alarms = curls
    as_printed = json.loads(typed(prediction.replace("localhost:8080", server.address)))
    assert as_printed["error"].endswith("got 'ID'")
    assert answer(prediction)["prediction_id"] == id_
    assert answer(feedback)["status"] == "matched"
    server.wait_for(lambda: answer(prediction)["labels"], 20, "the label is found with the prediction")
    assert answer(prediction)["labels"][0]["value"] is True
    assert "flights" in {each["model"] for each in answer(monitors)}
    assert answer(alarms) == []


def test_every_command_of_the_readme_exists() -> None:
    from gateway.cli import main

    for command in sorted(set(re.findall(r"^headgate ((?:model )?[a-z]+)", README, re.MULTILINE))):
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--help"])
        assert ended.value.code == 0


def test_every_page_that_the_readme_names_is_there() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
