"""`headgate feedback` against a real server, and against one that is busy, gone or something else."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway import cli
from gateway.feedback import cli as feedback_cli
from gateway.feedback import log as logs
from gateway.feedback.event import Event
from gateway.journal.frames import Torn
from tests.onnx_models import identity, put
from tests.servers import Server

ROW = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2.5, 3, 4]}]}
MODEL = """
[feedback.late]
type = "boolean"
[feedback.delay]
type = "number"
entity = "flight"
[feedback.airport]
type = "category"
values = ["JFK", "NaN", 7, "true"]
"""


class Said(NamedTuple):
    """What a command said and ended with."""

    code: int
    out: str
    err: str


class Setting:
    """A server with one model, its predictions and its logs."""

    def __init__(self, scratch: Path) -> None:
        put(scratch / "models", "echo", 1, identity())
        (scratch / "models" / "echo" / "model.toml").write_text(MODEL)
        self.server = Server(scratch / "models", scratch / "server", "--quiet-s", "0")
        self.folder = scratch / "server" / "data" / "feedback"

    def predict(self) -> str:
        """Makes a prediction; returns its id."""
        return str(self.server.infer("echo", ROW)["parameters"]["prediction_id"])

    def about(self, prediction: str) -> list[Event]:
        """The events about a prediction."""
        found: list[Event] = []
        for path in logs.files(self.folder):
            items = [item for item in logs.read(path) if not isinstance(item, Torn)]
            found += [event for _, event in items if event.prediction_id == prediction]
        return found


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """One server for all tests."""
    made = Setting(tmp_path_factory.mktemp("cli"))
    yield made
    made.server.stop()


@pytest.fixture
def feedback(capsys: pytest.CaptureFixture[str], setting: Setting) -> Callable[..., Said]:
    """Runs ``headgate feedback`` in this process, against the server unless another --url is given."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        words = [str(argument) for argument in arguments]
        try:
            code = cli.main(["feedback", *words, *([] if "--url" in words else ["--url", setting.server.url])])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


def test_one_event_is_sent(setting: Setting, feedback: Callable[..., Said]) -> None:
    prediction = setting.predict()
    said = feedback(
        *("put", "late", "true", "--prediction", f"{prediction}#0", "--source-id", "gate", "--source-type", "HUMAN"),
        *("--observed-at", "2026-09-17T10:00:00Z", "--rationale", "seen", "--key", "k1"),
    )
    (event,) = setting.about(prediction)
    assert said == Said(0, f"matched {event.feedback_id}\n", "")
    assert (event.value, event.row, event.source.id, event.source.type) == (True, 0, "gate", "HUMAN")
    assert (event.rationale, event.idempotency_key) == ("seen", "k1")
    again = feedback("put", "late", "false", "--prediction", f"{prediction}#0", "--key", "k1")
    assert again.code == 1
    assert again.err.startswith("headgate: Idempotency-Key 'k1' was used for other feedback")


@pytest.mark.parametrize(("text", "value"), [("JFK", "JFK"), ("NaN", "NaN"), ("7", 7), ('"true"', "true")])
def test_a_value_is_json_or_a_text(setting: Setting, feedback: Callable[..., Said], text: str, value: object) -> None:
    prediction = setting.predict()
    assert feedback("put", "airport", text, "--prediction", prediction).code == 0
    assert [event.value for event in setting.about(prediction)] == [value]


def test_values_are_read_as_pandas_writes_them_or_as_texts_where_that_is_said(
    setting: Setting, feedback: Callable[..., Said], tmp_path: Path
) -> None:
    prediction = setting.predict()
    assert feedback("put", "late", "True", "--prediction", prediction).code == 0
    assert feedback("put", "airport", "true", "--text", "--prediction", prediction).code == 0
    file = tmp_path / "labels.csv"
    file.write_text(f"prediction_id,name,value\n{prediction},late,False\n{prediction},airport,NaN\n")
    assert feedback("put", "--file", str(file)).code == 0
    file.write_text(f"prediction_id,name,value,source_id\n{prediction},airport,true,me\n")
    refused = feedback("put", "--file", str(file))
    assert (refused.code, "got true" in refused.err) == (1, True)
    assert feedback("put", "--file", str(file), "--text").code == 0
    said = [event.value for event in setting.about(prediction)]
    assert said == [True, "true", False, "NaN", "true"]


def test_the_other_addresses_are_sent(feedback: Callable[..., Said]) -> None:
    by_entity = ("--entity", "LH400", "--event-time", "2026-09-17T10:00:00Z")
    assert feedback("put", "delay", "-3.5", *by_entity).out.startswith("pending ")
    assert feedback("put", "late", "true", "--request-id", "order-7", "--model", "echo").out.startswith("pending ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["put"], "headgate: give NAME and VALUE, or --file"),
        (["put", "late"], "headgate: give NAME and VALUE, or --file"),
        (["put", "late", "true", "--file", "x.csv"], "headgate: give either --file, or NAME and VALUE"),
        (["put", "late", "true"], "headgate: give exactly one of prediction_id, request_id and entity"),
        (
            ["put", "late", "3", "--request-id", "a"],
            "headgate: feedback 'late' of model 'echo' is declared as a boolean",
        ),
        (["put", "--file", "absent.csv"], "headgate: No such file or directory: absent.csv"),
        (["link", "x", "late"], "headgate: prediction_id must be a UUID"),
        (
            ["put", "late", "true", "--url", "http://127.0.0.1:1"],
            "headgate: the server at http://127.0.0.1:1/v1/feedback",
        ),
        (
            ["put", "late", "true", "--url", "nonsense"],
            "headgate: the server at nonsense/v1/feedback cannot be reached",
        ),
    ],
)
def test_what_is_wrong_is_one_line(feedback: Callable[..., Said], arguments: list[str], words: str) -> None:
    said = feedback(*arguments)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith(words)
    assert said.err.count("\n") == 1


def test_a_csv_file_is_sent_once_however_often(
    setting: Setting, feedback: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A file of several batches, with two rows that are wrong. 2. The same file again.
    Result: each good row is one event; the wrong ones are named by their lines, both times.
    """
    monkeypatch.setattr(feedback_cli, "BATCH_BYTES", 2000)
    predictions = [setting.predict() for _ in range(30)]
    rows = [f"{name},late,{str(n % 2 == 0).lower()},,arrivals" for n, name in enumerate(predictions)]
    rows[4] = rows[4].replace("true", "maybe")
    rows[20] = rows[20].replace("late", "later")
    path = tmp_path / "labels.csv"
    path.write_text("prediction_id,name,value,rationale,source_id\n" + "\n".join(rows) + "\n")
    said = feedback("put", "--file", path)
    assert said.code == 1
    assert said.out == "28 taken, of which 0 were there already; 2 refused\n"
    first, second = said.err.splitlines()
    assert first.startswith("line 6: feedback 'late' of model 'echo' is declared as a boolean")
    assert second.startswith("line 22: model 'echo' declares no feedback named 'later'")
    assert feedback("put", "--file", path).out == "28 taken, of which 28 were there already; 2 refused\n"
    for number, name in enumerate(predictions):
        expected = [] if number in (4, 20) else [(number % 2 == 0, "arrivals")]
        assert [(event.value, event.source.id) for event in setting.about(name)] == expected


def test_a_file_of_json_lines_is_sent(setting: Setting, feedback: Callable[..., Said], tmp_path: Path) -> None:
    one, two = setting.predict(), setting.predict()
    path = tmp_path / "labels.jsonl"
    lines = [{"prediction_id": one, "name": "late", "value": True, "idempotency_key": "mine"}]
    lines.append({"prediction_id": two, "name": "airport", "value": "JFK"})
    path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n{\n[]\n")
    said = feedback("put", "--file", path)
    assert (said.code, said.out) == (1, "2 taken, of which 0 were there already; 2 refused\n")
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["line 4", "line 5"]
    assert setting.about(one)[0].idempotency_key == "mine"
    assert setting.about(two)[0].value == "JFK"


def test_a_terminal_is_shown_how_far_it_is(
    setting: Setting, feedback: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback_cli, "BATCH_BYTES", 1000)
    path = tmp_path / "labels.jsonl"
    line = {"prediction_id": setting.predict(), "name": "late"}
    path.write_text("".join(json.dumps(line | {"value": True, "rationale": str(n)}) + "\n" for n in range(40)))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    said = feedback("put", "--file", path)
    assert said.code == 0
    percents = [int(text.rpartition(" ")[2].strip().rstrip("%")) for text in said.err.split("\r")[1:]]
    assert len(percents) > 3
    assert percents == sorted(percents)
    assert percents[-1] == 100


def test_many_refused_lines_are_counted(feedback: Callable[..., Said], tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("request_id,name,value,row\n" + "order,never,1,0\n" * 50)
    said = feedback("put", "--file", path)
    assert (said.code, said.out) == (1, "0 taken, of which 0 were there already; 50 refused\n")
    lines = said.err.splitlines()
    assert len(lines) == feedback_cli.MAX_SHOWN + 1
    assert lines[-1] == "and 30 more lines were refused"


def test_a_csv_file_that_is_none_is_refused_by_its_line(feedback: Callable[..., Said], tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("prediction_id,name,value\na,b\n")
    said = feedback("put", "--file", path)
    assert (said.code, said.err) == (1, "headgate: labels.csv, line 2: the row is not as long as the head\n")


def test_a_link_is_printed_and_works(setting: Setting, feedback: Callable[..., Said]) -> None:
    prediction = setting.predict()
    said = feedback("link", prediction, "airport", "--value", "JFK", "--value", "7", "--source-id", "pax")
    url = said.out.strip()
    assert said.code == 0
    status, _, body = setting.server.request("POST", url.removeprefix(setting.server.url), b"value=7")
    assert status == 200
    assert b"Thank you" in body
    assert [(event.value, event.source.id) for event in setting.about(prediction)] == [(7, "pax")]
    document = json.loads(feedback("link", prediction, "airport", "--json", "--expires-in", "12h").out)
    assert set(document) == {"url", "link_id", "expires_at"}


# -- servers that are busy, or no Headgate


class Stage:
    """A server that gives prepared answers in turn; `bodies` is what it was sent."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.bodies: list[bytes] = []
        waiting = list(answers)
        bodies = self.bodies

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                """See BaseHTTPRequestHandler."""
                bodies.append(self.rfile.read(int(self.headers["content-length"])))
                status, document = waiting.pop(0)
                content = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("retry-after", "0")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Not on the tests' output."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def stage() -> Iterator[Callable[..., Stage]]:
    """Makes stages; each is ended with its test."""
    made: list[Stage] = []

    def make(*answers: tuple[int, Any]) -> Stage:
        made.append(Stage(*answers))
        return made[-1]

    yield make
    for each in made:
        each.close()


BUSY = (503, {"error": "busy", "code": "not-ready"})
GOOD = {"feedback_id": "f", "status": "matched"}


def test_a_busy_server_is_asked_again(feedback: Callable[..., Said], stage: Callable[..., Stage]) -> None:
    server = stage(BUSY, BUSY, (201, GOOD))
    said = feedback("put", "late", "true", "--request-id", "a", "--url", server.url)
    assert said == Said(0, "matched f\n", "")
    assert len(set(server.bodies)) == 1
    assert len(server.bodies) == 3


def test_a_server_that_stays_busy_is_given_up(feedback: Callable[..., Said], stage: Callable[..., Stage]) -> None:
    server = stage(*[BUSY] * 10)
    said = feedback("put", "late", "true", "--request-id", "a", "--url", server.url)
    assert said == Said(1, "", "headgate: busy\n")
    assert len(server.bodies) == feedback_cli.TRIES


def test_lines_that_came_at_a_bad_time_are_sent_again_with_their_keys(
    feedback: Callable[..., Said], stage: Callable[..., Stage], tmp_path: Path
) -> None:
    busy = {"results": [{"line": 1, **GOOD}, {"line": 2, "error": "busy", "code": "queue-full"}]}
    good = {"results": [{"line": 1, **GOOD, "replayed": True}, {"line": 2, **GOOD}]}
    server = stage((200, busy), (200, good))
    path = tmp_path / "labels.jsonl"
    path.write_text('{"name": "late", "value": true}\n{"name": "late", "value": false}\n')
    said = feedback("put", "--file", path, "--url", server.url)
    assert said.out == "2 taken, of which 1 were there already; 0 refused\n"
    assert server.bodies[0] == server.bodies[1]
    keys = [json.loads(line)["idempotency_key"] for line in server.bodies[0].splitlines()]
    assert len(set(keys)) == 2


def test_a_server_that_is_no_headgate_is_told(feedback: Callable[..., Said], stage: Callable[..., Stage]) -> None:
    server = stage((404, b"<html>"))
    said = feedback("put", "late", "true", "--request-id", "a", "--url", server.url)
    assert said == Said(1, "", "headgate: the answer is not that of Headgate\n")
