"""The self-test at start-up: whatever moves in uvicorn or httptools is found and named, and nothing is served."""

from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httptools
import pytest
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway import doctor
from gateway.http import connection, fast, selftest
from gateway.workers.child import STARTUP_FAILURE
from tests.onnx_models import identity, put

ATTRIBUTES = [
    *((HttpToolsProtocol, name) for name in selftest.CONNECTION),
    *((RequestResponseCycle, name) for name in selftest.CYCLE),
    *((FlowControl, name) for name in selftest.FLOW),
    *((ServerState, name) for name in selftest.SERVER),
]
METHODS = [(owner, name) for owner, names in selftest.CLASSES.items() for name in names]


def test_this_uvicorn_passes(caplog: pytest.LogCaptureFixture) -> None:
    assert selftest.moved() == []
    assert selftest.check()
    assert caplog.records == []


@pytest.mark.parametrize(("owner", "name"), METHODS, ids=lambda each: getattr(each, "__name__", each))
def test_a_method_that_is_gone_is_named(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in has all the others, since a class that is written in C cannot be changed."""
    others = {each: getattr(owner, each) for each in selftest.CLASSES[owner] if each != name}
    stand_in = type(owner.__name__, (), others)
    monkeypatch.setattr(selftest, "CLASSES", {**selftest.CLASSES, stand_in: selftest.CLASSES[owner]})
    assert selftest.moved() == [f"{owner.__name__}.{name} is gone"]


@pytest.mark.parametrize(("owner", "name"), ATTRIBUTES, ids=lambda each: getattr(each, "__name__", each))
def test_an_attribute_that_is_gone_is_named(
    owner: type, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Renames(owner):  # type: ignore[misc]
        def __getattribute__(self, asked: str) -> Any:
            if asked == name:
                raise AttributeError(f"{owner.__name__!r} object has no attribute {name!r}")
            return super().__getattribute__(asked)

    for module in (selftest, httptools_impl):
        if hasattr(module, owner.__name__):
            monkeypatch.setattr(module, owner.__name__, Renames)
    assert name in " ".join(selftest.moved())
    assert not selftest.check()
    (first, *_) = [record for record in caplog.records if record.name == "headgate.http"]
    assert (first.levelno, first.__dict__["event"]) == (logging.CRITICAL, "selftest-failed")


def before(owner: type, name: str, act: Callable[[Any], object]) -> Callable[..., Any]:
    """A method that does something else first."""
    original = getattr(owner, name)

    def method(self: Any, *args: Any) -> Any:
        act(self)
        return original(self, *args)

    return method


def after(owner: type, name: str, act: Callable[[Any], object]) -> Callable[..., Any]:
    """A method that does something more."""
    original = getattr(owner, name)

    def method(self: Any, *args: Any) -> Any:
        found = original(self, *args)
        act(self)
        return found

    return method


def nothing(self: Any, *args: Any) -> None:
    """A method that does nothing."""


def parser_that(feed: Callable[[Any, bytes], None]) -> type:
    """A parser whose feed_data is another one."""
    return type("HttpRequestParser", (httptools.HttpRequestParser,), {"feed_data": feed})


ORIGINAL = httptools.HttpRequestParser


def swallows(self: Any, data: bytes) -> None:
    try:
        ORIGINAL.feed_data(self, data)
    except httptools.HttpParserCallbackError:
        raise httptools.HttpParserError from None


def counts_otherwise(self: Any, data: bytes) -> None:
    try:
        ORIGINAL.feed_data(self, data)
    except httptools.HttpParserUpgrade:
        raise httptools.HttpParserUpgrade(0) from None


def stops_at_the_first(self: Any, data: bytes) -> None:
    ORIGINAL.feed_data(self, data[: data.find(b"\r\n\r\n") + 4])


async def deaf(self: Any) -> dict[str, Any]:
    await self.message_event.wait()
    self.message_event.clear()
    message = {"type": "http.request", "body": bytes(self.body), "more_body": self.more_body}
    self.body = bytearray()
    return message


P, F, C = HttpToolsProtocol, FlowControl, RequestResponseCycle
CHANGES: dict[str, tuple[Any, str, Any, str]] = {
    "the queue is turned round": (
        P,
        "on_headers_complete",
        after(P, "on_headers_complete", lambda self: self.pipeline.reverse()),
        "pipeline",
    ),
    "requests are not queued": (
        P,
        "on_headers_complete",
        before(P, "on_headers_complete", lambda self: setattr(self, "cycle", None)),
        "pipeline",
    ),
    "tasks are not started": (P, "_start_asgi_task", nothing, "reply"),
    "no timer": (P, "on_response_complete", nothing, "_unset_keepalive_if_required"),
    "the timer goes on": (P, "_unset_keepalive_if_required", nothing, "_unset_keepalive_if_required"),
    "bodies are dropped": (P, "on_body", nothing, "reply"),
    "the end of a body is not told": (P, "on_message_complete", nothing, "reply"),
    "headers are copied": (
        P,
        "on_message_begin",
        after(P, "on_message_begin", lambda self: setattr(self, "headers", [])),
        "on_message_begin",
    ),
    "shutdown waits for nothing": (P, "shutdown", lambda self: self.transport.close(), "shutdown"),
    "shutdown does nothing": (P, "shutdown", nothing, "shutdown"),
    "writing is not paused": (P, "pause_writing", nothing, "pause_writing"),
    "writing is not resumed": (P, "resume_writing", nothing, "resume_writing"),
    "a loss is not told": (P, "connection_lost", nothing, "connection_lost"),
    "reading is not paused": (F, "pause_reading", nothing, "FlowControl"),
    "reading is not resumed": (F, "resume_reading", nothing, "FlowControl"),
    "a disconnection is not told": (C, "receive", deaf, "disconnected"),
    "replies begin with another line": (httptools_impl, "STATUS_LINE", {}, "STATUS_LINE"),
    "errors of callbacks are errors of the parser": (
        httptools,
        "HttpRequestParser",
        parser_that(swallows),
        "HttpParserCallbackError",
    ),
    "another place of an upgrade": (
        httptools,
        "HttpRequestParser",
        parser_that(counts_otherwise),
        "offers another protocol",
    ),
    "one request at a time": (httptools, "HttpRequestParser", parser_that(stops_at_the_first), "parser"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_behaves_otherwise_is_named(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, name, other, said = CHANGES[change]
    monkeypatch.setattr(target, name, other)
    found = selftest.moved()
    assert any(said in each for each in found), found


# -- the tables


def attributes_of(tree: ast.AST, of: str) -> set[str]:
    """Every attribute that is taken from a name, from an attribute of that name, or from super()."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        value = node.value
        if isinstance(value, ast.Call):
            value = value.func
        if getattr(value, "id", None) == of or getattr(value, "attr", None) == of:
            found.add(node.attr)
    return found


def test_the_tables_name_all_that_the_fast_door_takes_from_uvicorn() -> None:
    """Every attribute of the protocol that it did not make itself, and every method that it replaces."""
    parts = [
        node
        for module in (connection, fast)
        for node in ast.parse(Path(module.__file__).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name in ("Connection", "FastProtocol")
    ]
    assert len(parts) == 2
    protocol = ast.Module([each for part in parts for each in part.body], [])
    own = {node.name for node in protocol.body if isinstance(node, ast.FunctionDef)}
    own |= {
        target.attr
        for init in protocol.body
        if isinstance(init, ast.FunctionDef) and init.name == "__init__"
        for node in ast.walk(init)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute)
    }
    own.add("offers_inference")
    methods = set(selftest.CLASSES[HttpToolsProtocol])
    inherited = attributes_of(protocol, "self") - own | attributes_of(protocol, "super") - {"__init__"}
    assert inherited <= methods | set(selftest.CONNECTION)
    assert {name for name in own if hasattr(HttpToolsProtocol, name)} - {"__init__"} <= methods
    assert attributes_of(protocol, "flow") <= {*selftest.CLASSES[FlowControl], *selftest.FLOW}
    assert attributes_of(protocol, "cycle") <= set(selftest.CYCLE)
    assert attributes_of(protocol, "server_state") <= set(selftest.SERVER)
    assert attributes_of(protocol, "parser") <= set(selftest.CLASSES[httptools.HttpRequestParser])


# -- the doctor, and a whole server


def test_the_doctor_says_what_moved() -> None:
    assert doctor.check_uvicorn([]).status == "ok"
    check = doctor.check_uvicorn(["HttpToolsProtocol.shutdown is gone", "FlowControl.pause_reading is gone"])
    assert (check.status, check.advice != "") == ("fail", True)
    assert "HttpToolsProtocol.shutdown is gone; FlowControl.pause_reading is gone" in check.found


def test_a_server_on_another_uvicorn_does_not_start_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. It finds a uvicorn that does not tell the application of a lost connection.
    Result: the server ends by itself with the code for that before it says where it serves, and names the method.
    """
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'serve' in sys.orig_argv:\n"
        "    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol\n"
        "    HttpToolsProtocol.connection_lost = lambda self, exc: None\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    put(tmp_path / "models", "echo", 1, identity())
    command = [sys.executable, "-m", "gateway", "serve", "--port", "0", "--admin-port", "0"]
    command += ["--models", str(tmp_path / "models"), "--data", str(tmp_path / "data")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert (ran.returncode, ran.stdout) == (STARTUP_FAILURE, "")
    lines = map(json.loads, ran.stderr.splitlines())
    (reason,) = [line["reason"] for line in lines if line["event"] == "selftest-failed"]
    assert "connection_lost" in reason
