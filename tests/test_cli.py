"""The command line: what each command does, what it exits with, and that whatever is wrong is one line."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway import __version__, cli
from gateway.models.manifest import sha256
from gateway.settings import TABLE
from tests.onnx_models import constant_answer, put
from tests.servers import Server

pytestmark = pytest.mark.usefixtures("_one_nursery")

ROOT = Path(__file__).resolve().parent.parent


class Said(NamedTuple):
    """What a command said and ended with."""

    code: int
    out: str
    err: str


@pytest.fixture
def headgate(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command in this process."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


def one_line(said: Said, code: int, *words: str) -> None:
    """It failed with this code and one line of plain words."""
    assert said.code == code, said
    assert said.out == ""
    assert said.err.startswith("headgate: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file that answers 1."""
    path = tmp_path / "trained.onnx"
    path.write_bytes(constant_answer(1))
    return path


# Help


def commands(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command and sub-command with its parser."""
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from commands(child, (*path, name))


COMMANDS = dict(commands(cli._parser()))


def test_these_are_the_commands() -> None:
    assert {"serve", "doctor", "model"} <= {path[0] for path in COMMANDS if path}
    assert {path[1] for path in COMMANDS if path[:1] == ("model",) and len(path) > 1} == {"add", "check", "list"}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_and_each_of_its_options(
    path: tuple[str, ...], headgate: Callable[..., Said]
) -> None:
    said = headgate(*path, "--help")
    assert said.code == 0
    assert said.err == ""
    assert said.out.startswith(f"usage: {' '.join(('headgate', *path))} ")
    for action in COMMANDS[path]._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert all(choice.help for choice in action._choices_actions)
            assert all(name in said.out for name in action.choices)
        else:
            assert action.help, action.dest


def test_the_help_of_serve_names_every_setting_with_its_default(headgate: Callable[..., Said]) -> None:
    words = headgate("serve", "--help").out
    for row in TABLE:
        assert row.flag in words


def test_the_version_is_said(headgate: Callable[..., Said]) -> None:
    assert headgate("--version") == Said(0, f"headgate {__version__}\n", "")


@pytest.mark.parametrize("arguments", [(), ("model",), ("nonsense",), ("serve", "--nonsense"), ("model", "add", "m")])
def test_a_command_that_does_not_exist_or_lacks_something_is_2(
    arguments: tuple[str, ...], headgate: Callable[..., Said]
) -> None:
    said = headgate(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("usage: headgate")
    assert said.err.splitlines()[-1].startswith("headgate")


# model add


def test_a_model_is_added_with_everything_that_is_known_of_it(
    tmp_path: Path, model: Path, headgate: Callable[..., Said]
) -> None:
    data = tmp_path / "train.csv"
    data.write_text("a,b\n1,2\n")
    samples = tmp_path / "samples.json"
    x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    samples.write_text(json.dumps([{"inputs": [x]}]))
    models = tmp_path / "models"
    options = [
        "--models",
        models,
        "--samples",
        samples,
        "--author",
        "ada",
        "--reason",
        "first",
        "--training-data",
        data,
    ]
    options += ["--code-revision", "abc", "--metric", "auc=0.75", "--metric", "n=1e3"]
    assert headgate("model", "add", "m", model, *options) == Said(0, "added m version 1\n", "")
    manifest = json.loads((models / "m" / "1" / "manifest.json").read_text())
    lineage = manifest["lineage"]
    assert (lineage["author"], lineage["reason"], lineage["code_revision"]) == ("ada", "first", "abc")
    assert lineage["training_data"] == f"sha256:{sha256(data.read_bytes())}"
    assert lineage["metrics"] == {"auc": 0.75, "n": 1000}
    assert lineage["created"].endswith("+00:00")
    assert set(manifest["files"]) == {"model.onnx", "golden.json"}
    assert headgate("model", "add", "m", model, "--models", models).out == "added m version 2\n"
    assert headgate("model", "add", "m", model, "--models", models, "--version", 7).out == "added m version 7\n"
    one_line(headgate("model", "add", "m", model, "--models", models, "--version", 7), 1, "m version 7 exists already")
    replaced = headgate("model", "add", "m", model, "--models", models, "--version", 7, "--replace")
    assert replaced == Said(0, "added m version 7\n", "")


def test_what_cannot_be_added_is_said_in_one_line(tmp_path: Path, model: Path, headgate: Callable[..., Said]) -> None:
    models = tmp_path / "models"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    one_line(headgate("model", "add", "m", broken, "--models", models), 1)
    one_line(headgate("model", "add", "m", tmp_path / "none.onnx", "--models", models), 1, "none.onnx is missing")
    one_line(headgate("model", "add", "m", tmp_path, "--models", models), 1, "is missing, or not a file")
    one_line(headgate("model", "add", "a b", model, "--models", models), 1, "'a b' cannot be used")
    one_line(
        headgate("model", "add", "m", model, "--models", models, "--samples", tmp_path / "none.json"), 1, "samples"
    )
    (tmp_path / "file").write_text("")
    one_line(headgate("model", "add", "m", model, "--models", tmp_path / "file"), 1, "Not a directory")


@pytest.mark.parametrize(
    "option",
    [
        ("--version", "0"),
        ("--version", "-1"),
        ("--version", "²"),
        ("--version", "1.0"),
        ("--version", "9" * 19),
        ("--metric", "auc"),
        ("--metric", "auc=high"),
        ("--metric", "auc=nan"),
        ("--metric", "=1"),
    ],
)
def test_a_wrong_option_of_add_is_2_and_names_option_and_value(
    option: tuple[str, str], tmp_path: Path, model: Path, headgate: Callable[..., Said]
) -> None:
    said = headgate("model", "add", "m", model, "--models", tmp_path / "models", *option)
    assert said.code == 2
    last = said.err.splitlines()[-1]
    assert f"argument {option[0]}: {option[1]!r} is not" in last
    assert not (tmp_path / "models").exists()


# model check


def test_a_version_that_passes_is_described(headgate: Callable[..., Said]) -> None:
    said = headgate("model", "check", ROOT / "examples" / "tiny" / "1")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == "tiny version 1 passed (verified)"
    for word in ("sha256", "input", "output", "measured", "golden", "batches  yes"):
        assert any(line.startswith(f"  {word}") for line in lines[1:]), word
    document = json.loads(headgate("model", "check", ROOT / "examples" / "tiny" / "1", "--json").out)
    assert (document["verified"], document["contract"]["batched"]) == (True, True)


def test_a_version_that_does_not_pass_is_1_with_the_reason(tmp_path: Path, headgate: Callable[..., Said]) -> None:
    folder = put(tmp_path, "m", 1, constant_answer(1)[:-20])
    one_line(headgate("model", "check", folder), 1)
    (folder / "model.onnx").unlink()
    one_line(headgate("model", "check", folder), 1, "model.onnx is missing")


def test_what_is_no_version_folder_is_2(tmp_path: Path, headgate: Callable[..., Said]) -> None:
    folder = put(tmp_path, "m", 1, constant_answer(1))
    for wrong in (tmp_path, folder.parent, folder / "model.onnx", tmp_path / "m" / "2"):
        one_line(headgate("model", "check", wrong), 2, "folder", str(wrong), "is not a version folder")
    (folder.parent / "model.toml").write_text("[versions]\ncount = 0\n")
    one_line(headgate("model", "check", folder), 2, "model.toml", "versions.count")


def test_a_check_follows_model_toml(tmp_path: Path, headgate: Callable[..., Said]) -> None:
    folder = put(tmp_path, "m", 1, constant_answer(1), toml="[batching]\nenabled = false\n")
    assert "batches  no" in headgate("model", "check", folder).out


# model list


def test_versions_are_listed_with_what_keeps_them(tmp_path: Path, headgate: Callable[..., Said]) -> None:
    put(tmp_path, "a", 1, constant_answer(1), toml="[aliases]\nchampion = 1\n")
    put(tmp_path, "a", 10, constant_answer(1))
    put(tmp_path, "b", 2, constant_answer(1), toml="nonsense = 1\n")
    put(tmp_path, "bad name", 1, constant_answer(1))
    waiting = put(tmp_path, "c", 1, constant_answer(1))
    entry = {"size": 10_000, "sha256": "0" * 64}
    manifest = {"model": "c", "version": 1, "files": {"model.onnx": entry}}
    (waiting / "manifest.json").write_text(json.dumps(manifest))
    said = headgate("model", "list", "--models", tmp_path)
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[0].split() == ["MODEL", "VERSION", "KIND", "ALIASES", "STATE"]
    rows = json.loads(headgate("model", "list", "--models", tmp_path, "--json").out)
    assert [(row["model"], row["version"], row["aliases"]) for row in rows] == [
        ("a", 1, "champion"),
        ("a", 10, ""),
        ("b", 2, ""),
        ("bad name", "-", ""),
        ("c", 1, ""),
    ]
    assert [row["kind"] for row in rows] == ["unverified"] * 3 + ["-", "manifest"]
    assert "nonsense" in rows[2]["state"]
    assert "model name" in rows[3]["state"]
    assert rows[4]["state"].startswith("waiting: model.onnx has ")
    for row in rows:
        assert any(row["state"] in line and row["model"] in line for line in said.out.splitlines())


def test_an_empty_folder_has_no_models_and_a_missing_one_is_2(tmp_path: Path, headgate: Callable[..., Said]) -> None:
    assert headgate("model", "list", "--models", tmp_path) == Said(0, "no models\n", "")
    assert headgate("model", "list", "--models", tmp_path, "--json") == Said(0, "[]\n", "")
    one_line(headgate("model", "list", "--models", tmp_path / "none"), 2, "models", "none", "No such file")


# serve


def serve(tmp_path: Path, *options: object, **variables: str) -> Said:
    """A server that cannot start, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADGATE_")}
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--port", "0", "--admin-port", "0", *map(str, options)],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return Said(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.parametrize(
    ("options", "variables", "words"),
    [
        pytest.param(["--models", "none"], {}, ["models", "'none'", "is not a folder"], id="no models"),
        pytest.param(["--port", "http"], {}, ["port", "--port", "'http'", "0 to 65535"], id="a word for a port"),
        pytest.param(["--poll-s", "0"], {}, ["poll_s", "--poll-s", "0.1 to 3600"], id="a number out of range"),
        pytest.param([], {"HEADGATE_LOG_LEVEL": "loud"}, ["log_level", "HEADGATE_LOG_LEVEL", "'loud'"], id="variable"),
        pytest.param([], {"HEADGATE_PROT": "8080"}, ["HEADGATE_PROT"], id="a variable that is spelt wrong"),
        pytest.param(["--config", "bad.toml"], {}, ["bad.toml", "prot"], id="a key that is spelt wrong"),
        pytest.param(["--config", "none.toml"], {}, ["none.toml"], id="no such file"),
        pytest.param(["--data", "file"], {}, ["data", "'file'"], id="a file for the data folder"),
        pytest.param(["--host", "192.0.2.1"], {}, ["host", "192.0.2.1", "port 0"], id="an address of another machine"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line_and_exits_with_2(
    tmp_path: Path, options: list[str], variables: dict[str, str], words: list[str]
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "bad.toml").write_text("prot = 8080\n")
    one_line(serve(tmp_path, *options, **variables), 2, *words)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for flag in ("--port", "--admin-port"):
            said = f"port {port}: Address already in use ({flag} takes another port)"
            one_line(serve(tmp_path, flag, port), 2, "127.0.0.1", said)


def test_two_servers_do_not_share_a_data_folder(tmp_path: Path, start_server: Callable[..., Server]) -> None:
    put(tmp_path / "models", "m", 1, constant_answer(1))
    server = start_server(tmp_path / "models", "--data", str(tmp_path / "data"))
    one_line(serve(tmp_path), 2, "data", "in use by another server")
    assert server.request("GET", "/v2/health/ready")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_asked_to_end_exits_with_0(
    tmp_path: Path, start_server: Callable[..., Server], number: signal.Signals
) -> None:
    put(tmp_path / "models", "m", 1, constant_answer(1))
    server = start_server(tmp_path / "models")
    assert server.stop(number) == 0
    events = [line["event"] for line in server.log()]
    assert (events[0], events[-1]) == ("started", "stopped")


def test_the_command_has_one_thread_so_that_no_signal_to_the_supervisor_goes_to_another() -> None:
    code = "import gateway.cli, gateway.server, os; print(len(os.listdir('/proc/self/task')))"
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.split() == ["1"]


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """The other end of standard output is closed before anything is written, as by `| head` once it has its lines."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "gateway", "doctor", "--json"]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")
