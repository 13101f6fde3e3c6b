"""The supervisor: holds the sockets, forks the control process and the workers, replaces what dies or hangs.

It never opens a model and has no event loop and no thread: it imports what the others need, once, and stays as it is,
so that each of them is there at once and shares this memory. A process that is killed is replaced at once, one that
keeps dying after growing pauses; SIGHUP replaces them all, one after the other. When the supervisor itself is killed,
the others see the end of a pipe, drain and exit.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import os
import shutil
import signal
import socket
import time
from contextlib import suppress
from typing import Any

from gateway import __version__, host
from gateway.control import process as control
from gateway.errors import SettingError
from gateway.http import selftest
from gateway.settings import Settings
from gateway.telemetry import logs
from gateway.workers import bell, notes, process, worker
from gateway.workers.board import Board, RunFolder
from gateway.workers.child import STARTUP_FAILURE, Born, Child
from gateway.workers.notes import Crash, Culprit, Death, Notes
from gateway.workers.renewal import Renewal

log = logging.getLogger("headgate.supervisor")

BACKLOG = 1024
TICK_S = 0.25
"""How often the supervisor looks at signs of life. The end of a process wakes it."""

START_S = 60.0
"""How long a process may take until its first sign of life."""

START_TRIES = 3
"""A process that ended so often without a sign of life, and never showed one before, cannot start at all."""

KILL_AFTER_S = 5.0
"""How much longer than the drain a process may take to end."""

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP}


def bind(address: str, port: int, what: str) -> socket.socket:
    """A listening socket; `what` is the setting of the address. Raises SettingError, naming host and port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        flag = "--" + what.replace("host", "port").replace("_", "-")
        hint = f" ({flag} takes another port)" if error.errno == errno.EADDRINUSE else ""
        raise SettingError(f"cannot listen on {what} {address} port {port}: {error.strerror}{hint}") from None
    return listener


class Supervisor:
    """The processes of one server. `run` blocks until all of them have ended."""

    def __init__(self, settings: Settings, workers: int, data_port: socket.socket, admin_port: socket.socket) -> None:
        self._settings = settings
        self._folder = RunFolder(settings.data.absolute())
        self._board = Board(self._folder.board)
        self._lifeline_read, self._lifeline_write = os.pipe()
        self._sockets = (data_port, admin_port)
        self._children = [Child(0, "control", control.main, admin_port)]
        self._children += [Child(slot, f"worker {slot}", worker.main, data_port) for slot in range(1, workers + 1)]
        self._renewal = Renewal(self._children, self._board, workers, self._start_one, START_S)
        self._patience_s = settings.grace_s + settings.drain_s + KILL_AFTER_S
        self._stopping_since: float | None = None
        self._exit_code = 0

    def run(self) -> int:
        """Supervise until told to stop; returns the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        while True:
            now = time.monotonic()
            self._reap(now)
            if self._stopping_since is None:
                self._renewal.step(now)
                self._start(now)
                self._watch(now)
            elif not any(child.is_alive for child in self._children):
                return self._exit_code
            else:
                self._hurry(now)
            info = signal.sigtimedwait(_SIGNALS, TICK_S)
            if info is not None and info.si_signo in (signal.SIGTERM, signal.SIGINT):
                self._stop(time.monotonic())
            elif info is not None and info.si_signo == signal.SIGHUP:
                self._renewal.begin()

    def become(self, child: Child) -> int:
        """In a new process: give up what is the supervisor's and live as this child; returns the exit code.

        The pipe is told from its end, so nobody but the supervisor may hold that.
        """
        os.close(self._lifeline_write)
        for listener in self._sockets:
            if listener is not child.listener:
                listener.close()
        child.listener.setblocking(False)
        lifeline = self._lifeline_read
        place = process.Place(child.slot, child.listener, lifeline, self._folder, self._board, self._settings)
        return process.run(child.main, place)

    def _start(self, now: float) -> None:
        for child in self._children:
            if not child.is_alive and child.retired_at is None and now >= child.start_at:
                self._start_one(child, now)

    def _start_one(self, child: Child, now: float) -> None:
        self._folder.notes(child.slot).unlink(missing_ok=True)
        self._folder.crash(child.slot).unlink(missing_ok=True)
        self._board.clear(child.slot, 0)
        try:
            pid = child.start(now)
        except OSError as error:
            facts: dict[str, Any] = {"event": "process-not-started", "role": child.name, "reason": error.strerror}
            log.error("process cannot be started", extra=facts)
            return
        self._board.clear(child.slot, pid)
        facts = {"event": "process-started", "role": child.name, "pid": pid, "restarts": child.restarts}
        log.info("process started", extra=facts)

    def _reap(self, now: float) -> None:
        for child in list(self._children):
            pid = self._board.pid(child.slot)
            code = child.reap(now)
            if code is None:
                continue
            crash = notes.read_crash(self._folder.crash(child.slot))
            culprits = self._note_death(child, code, crash, now)
            self._board.clear(child.slot, 0)
            facts: dict[str, Any] = {"event": "process-ended", "role": child.name, "pid": pid, "exit_code": code}
            if self._stopping_since is not None:
                log.info("process ended", extra=facts)
                # A process that is still starting has no handler yet: the signal itself ends it, as it should.
                if code not in (0, -signal.SIGTERM):
                    self._exit_code = 1
            elif child.retired_at is not None or (child.renewing and code == 0):
                log.info("process ended", extra=facts)
            else:
                self._board.count_death(child.slot)
                if crash is not None:
                    facts["calls"] = crash.calls
                if culprits:
                    facts["culprits"] = [f"{each.key.model}/{each.key.version}" for each in culprits]
                log.error("process ended", extra=facts)
                self._give_up(child, code, now)
            if child.retired_at is not None:
                self._children.remove(child)
        self._bury_orphans()

    def _bury_orphans(self) -> None:
        """Process 1 of a container inherits what others leave, such as the nursery of a killed control process."""
        known = {child.process.pid for child in self._children if child.process is not None}
        with suppress(ChildProcessError):
            while info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if info.si_pid in known:  # its turn comes
                    break
                os.waitpid(info.si_pid, 0)

    def _note_death(self, child: Child, code: int, crash: Crash | None, now: float) -> tuple[Culprit, ...]:
        """Leave word to the control process of what a worker did when it crashed."""
        cause = child.cause(code)
        if not cause or child.slot == 0 or not self._folder.notes(child.slot).exists():
            return ()
        culprits = Notes(self._folder.notes(child.slot)).culprits(crash.thread if crash is not None else None)
        if culprits:
            notes.append(self._folder.deaths, Death(now, child.slot, cause, culprits))
            bell.ring(self._board.pid(0))
        return culprits

    def _give_up(self, child: Child, code: int, now: float) -> None:
        """End the server where a process of its first start cannot start; later on the others go on without it."""
        if child.was_up or (code != STARTUP_FAILURE and child.failures < START_TRIES):
            return
        log.critical("a process cannot start", extra={"event": "start-failed", "role": child.name, "exit_code": code})
        self._exit_code = STARTUP_FAILURE
        self._stop(now)

    def _watch(self, now: float) -> None:
        """Replace what gives no sign of life."""
        for child in self._children:
            if not child.is_alive:
                continue
            beat = self._board.last_beat_ns(child.slot) / 1e9
            child.was_up = child.was_up or beat > 0
            if self._board.is_worn(child.slot) and now - child.asked_at > START_S:
                child.asked_at = now
                self._renewal.replace(child)
            silent = now - beat if beat else now - child.started_at - START_S
            if child.retired_at is not None and now - child.retired_at > self._patience_s:
                child.send(signal.SIGKILL)
            elif silent > self._settings.heartbeat_timeout_s:
                done = child.unhang(now)
                if done:
                    facts = {"event": "process-hung", "role": child.name, "silent_s": round(silent, 1)}
                    log.error(f"hung process {done}", extra=facts)

    def _stop(self, now: float) -> None:
        if self._stopping_since is None:
            log.info("stopping", extra={"event": "stopping"})
            self._stopping_since = now
            for listener in self._sockets:
                listener.close()
        else:
            self._stopping_since = now - self._patience_s + 1.0
        for child in self._children:
            child.send(signal.SIGTERM)

    def _hurry(self, now: float) -> None:
        since = self._stopping_since
        if since is not None and now - since > self._patience_s:
            for child in self._children:
                child.send(signal.SIGKILL)


def run(settings: Settings) -> int:
    """Bind, make the run folder, supervise; returns the exit code of the server, or of one of its processes."""
    logs.configure(settings.log_level)
    if not selftest.check():
        return STARTUP_FAILURE
    workers = settings.workers or max(1, int(host.cores().count))
    data_port = bind(settings.host, settings.port, "host")
    admin_port = bind(settings.admin_host, settings.admin_port, "admin_host")
    folder = RunFolder(settings.data.absolute())
    lock = hold(settings)
    shutil.rmtree(folder.path, ignore_errors=True)
    folder.path.mkdir(mode=0o700)
    url, admin = (_url(listener) for listener in (data_port, admin_port))
    print(f"Headgate {__version__} serves {settings.models} on {url}", flush=True)
    facts = {"event": "started", "url": url, "admin": admin, "workers": workers, "version": __version__}
    log.info("started", extra=facts)
    supervisor = Supervisor(settings, workers, data_port, admin_port)
    # What is there now stays: a collection of garbage would only copy pages that the processes share.
    gc.collect()
    gc.freeze()
    try:
        code = supervisor.run()
    except Born as born:
        child = born.child
    else:
        log.info("stopped", extra={"event": "stopped"})
        os.close(lock)
        return code
    os.close(lock)
    code = supervisor.become(child)
    logging.shutdown()
    # All is closed. The interpreter would take apart, page by page, what the processes share, and copy it for that.
    os._exit(code)


def hold(settings: Settings) -> int:
    """Hold the data folder: two servers in one would overwrite each other's files. Raises SettingError."""
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(settings.data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingError(f"data: {str(settings.data)!r} cannot be written ({error.strerror})") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SettingError(f"data: {str(settings.data)!r} is in use by another server") from None
    return descriptor


def _url(listener: socket.socket) -> str:
    address = listener.getsockname()
    name = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http://{name}:{address[1]}"
