"""A real server process for tests: started on a free port, waited for, and always ended."""

from __future__ import annotations

import json
import os
import select
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.hatchery import Command

START_S = 100.0
"""Other tests may keep this machine busy; the time limit of a test, in pyproject.toml, is longer."""

PATIENCE = 3
"""How much longer than a test thinks right something is waited for: other tests may keep this machine busy."""


class Server:
    """`headgate serve` as a process. `url` is where it answers; `log()` is what it logged so far, as objects."""

    def __init__(self, models: Path, scratch: Path, *options: str, wait: bool = True) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self._log_path = scratch / "log.jsonl"
        with open(self._log_path, "wb") as log:
            self.process = Command(
                [
                    *("serve", "--models", str(models), "--data", str(scratch / "data"), "--port", "0"),
                    *("--admin-port", "0", "--workers", "1", "--poll-s", "0.2", *options),
                ],
                stderr=log.fileno(),
                env={name: value for name, value in os.environ.items() if not name.startswith("HEADGATE_")},
            )
        self.url = self._read_url()
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.stop()
                raise

    def _read_url(self) -> str:
        ready, _, _ = select.select([self.process.stdout], [], [], START_S)
        line = self.process.stdout.readline().decode() if ready else ""
        if " on http://" not in line:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            raise AssertionError(f"the server did not start: {line!r}\n{self._log_path.read_text()[-4000:]}")
        return line.strip().rpartition(" on ")[2]

    @property
    def admin_url(self) -> str:
        """Where the control process answers."""
        return str(next(line["admin"] for line in self.log() if line["event"] == "started"))

    def pid(self, role: str) -> int:
        """The pid of the process that has a role now: control, worker 1 ..."""
        started = [line for line in self.log() if line["event"] == "process-started" and line["role"] == role]
        return int(started[-1]["pid"])

    @property
    def address(self) -> str:
        """host:port, as tritonclient wants it."""
        return self.url.removeprefix("http://")

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Wait until /v2/health/ready answers 200."""
        if not self._comes(lambda: self.request("GET", "/v2/health/ready")[0] == 200, timeout_s):
            raise AssertionError(f"not ready within {timeout_s} s\n{self._log_path.read_text()[-4000:]}")

    def wait_for(self, reached: Any, timeout_s: float, what: str) -> None:
        """Poll until `reached()` is true."""
        came = self._comes(reached, PATIENCE * timeout_s)
        assert came, f"not within {PATIENCE} times {timeout_s} s: {what}\n{self._log_path.read_text()[-4000:]}"

    def _comes(self, reached: Any, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert self.process.poll() is None, f"the server ended\n{self._log_path.read_text()[-4000:]}"
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request; `body` is bytes, or an object that is sent as JSON. Returns status, headers, body."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, _lower(reply.headers), reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _lower(error.headers), error.read()

    def json(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """The reply's JSON, whatever its status."""
        return json.loads(self.request(method, path, body, headers)[2] or b"null")

    def infer(self, model: str, document: Any, version: str | int | None = None) -> Any:
        """One JSON inference; the reply's JSON, whatever its status."""
        slot = f"/versions/{version}" if version is not None else ""
        return self.json("POST", f"/v2/models/{model}{slot}/infer", document)

    def log(self) -> list[dict[str, Any]]:
        """Every line that was logged."""
        # A line that crosses a page of the file can be seen when only its first part is there.
        whole = self._log_path.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def stop(self, signal_number: int = signal.SIGTERM, timeout_s: float = 30) -> int:
        """Ask it to end and wait; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            return self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()


def _lower(headers: Any) -> dict[str, str]:
    return {key.lower(): value for key, value in headers.items()}
