"""The systems under comparison, started when a row first needs them and ended together."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType

from loadtests import environments
from loadtests.processes import ROOT, START_S, Cores, Server, environment


class NotOffered(Exception):
    """A system cannot be had here; the text says why, and its rows are left out."""


class Lineup:
    """Servers by name. A context manager: leaving it ends them all.

    ============= ==========================================================================================
    product       ``headgate serve`` with one worker, on the servers' core
    journal-alone the same without monitors
    unjournaled   the same without a journal, and so with nothing to monitor
    one-worker    the same as product, on both cores, which it shares with the load generator
    two-workers   two workers, likewise
    unmonitored   one-worker without monitors
    echo          loadtests/echo.py on the servers' core
    fastapi       loadtests/fastapi_app.py in its own environment, on the servers' core
    ============= ==========================================================================================
    """

    def __init__(self, models: Path, scratch: Path, cores: Cores) -> None:
        self._models = models
        self._scratch = scratch
        self._cores = cores
        self._servers: dict[str, Server] = {}
        self._missing: dict[str, str] = {}
        self._stack = ExitStack()
        self._flags = serve_flags()

    def get(self, name: str) -> Server:
        """The running server `name`. Raises NotOffered, or RuntimeError where it should have started and did not."""
        if name in self._missing:
            raise NotOffered(self._missing[name])
        if name not in self._servers:
            try:
                self._servers[name] = self._stack.enter_context(self._start(name))
            except (NotOffered, environments.NotMade) as error:
                self._missing[name] = str(error)
                raise NotOffered(str(error)) from None
            if name not in ("echo", "fastapi"):
                wait_ready(self._servers[name], [path.name for path in self._models.iterdir()])
        return self._servers[name]

    def _start(self, name: str) -> Server:
        log = self._scratch / f"{name}.log"
        if name == "echo":
            return Server(name, [sys.executable, "-m", "loadtests.echo"], self._cores.server, log)
        if name == "fastapi":
            python = environments.ensure(*environments.FASTAPI)
            command = [str(python), "-m", "loadtests.fastapi_app", str(self._models)]
            return Server(name, command, self._cores.server, log)
        workers = 2 if name == "two-workers" else 1
        cores = self._cores.server if name in ("product", "journal-alone", "unjournaled") else self._cores.both
        command = serve_command(self._flags, self._models, self._scratch / f"{name}-data", workers)
        lacks = {"unjournaled": "--no-journal", "journal-alone": "--no-monitors", "unmonitored": "--no-monitors"}
        command += [lacks[name]] if name in lacks else []
        return Server(name, command, cores, log)

    def __enter__(self) -> Lineup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def wait_ready(server: Server, models: Sequence[str]) -> None:
    """Wait until every model answers that it is ready. Raises RuntimeError where one does not."""
    names = sorted(models)
    deadline = time.monotonic() + START_S
    while names:
        with closing(http.client.HTTPConnection(*server.address, timeout=START_S)) as link:
            link.request("GET", f"/v2/models/{names[-1]}/ready")
            if link.getresponse().status == 200:
                names.pop()
                continue
        if not server.alive or time.monotonic() > deadline:
            raise RuntimeError(f"{server.name}: model {names[-1]} did not become ready: {server.last_words()}")
        time.sleep(0.05)


def serve_flags() -> str:
    """The help text of ``headgate serve``: what it can be told. Raises RuntimeError where it cannot be run."""
    command = [sys.executable, "-m", "gateway", "serve", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    if ran.returncode:
        raise RuntimeError(f"headgate cannot be run: {ran.stderr.strip()[-300:]}")
    return ran.stdout


def serve_command(flags: str, models: Path, data: Path, workers: int) -> list[str]:
    """``headgate serve`` on free ports with default settings. Raises NotOffered for more workers than it can have."""
    command = [sys.executable, "-m", "gateway", "serve", "--models", str(models), "--data", str(data), "--port", "0"]
    if "--admin-port" in flags:
        command += ["--admin-port", "0"]
    if "--workers" in flags:
        command += ["--workers", str(workers)]
    elif workers != 1:
        raise NotOffered("headgate serve has no --workers")
    return command
