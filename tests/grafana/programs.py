"""Prometheus, promtool and Alertmanager of the system: found, started on a free port, always ended."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.programs import found


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    """What promtool prints. Raises AssertionError with it where it finds fault."""
    command = [found("promtool"), *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def free_port() -> int:
    """A port of loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Program:
    """A child process that listens on `port`; a context."""

    def __init__(self, scratch: Path, name: str, *options: str, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = scratch / f"{name}.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen([found(name), *options], stdout=log, stderr=log, cwd=scratch)

    def __enter__(self) -> Self:
        try:
            self.wait_for(lambda: self.get("/-/ready") == "", 30, "it is ready")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def get(self, path: str, **query: str) -> Any:
        """The reply's data: JSON, "" where it is a text, None where there is none."""
        url = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as reply:
                body = reply.read()
        except urllib.error.HTTPError as error:
            with error:
                body = error.read()
            if error.code == 400:
                raise AssertionError(body) from None
            return None
        except OSError:
            return None
        return json.loads(body)["data"] if body.startswith(b"{") else ""

    def wait_for(self, reached: Callable[[], Any], timeout_s: float, what: str) -> Any:
        """Poll until something comes of `reached()`, and return it."""
        deadline = time.monotonic() + timeout_s
        while not (result := reached()):
            assert self._process.poll() is None, f"it ended\n{self._log.read_text()[-4000:]}"
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}\n{self._log.read_text()[-2000:]}"
            time.sleep(0.1)
        return result
