"""The scribe: a process that writes the files of the archive in time that nobody else wants.

To make a Parquet file of a segment and to compare it takes seconds of a core. Done in a thread it would also take the
interpreter from the others of its process, and keep it while it waits for a core behind busy workers.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from gateway import host
from gateway.journal.reader import Damaged, Segment

PATIENCE_S = 60.0
"""How long a file may take. Behind workers that leave no core idle it would take for ever."""

LOOK_S = 0.2
"""How often it is looked whether to go on waiting."""

NAME = "headgate-scribe"


class Task(msgspec.Struct, frozen=True):
    """A segment to be archived in `folder`; where that is empty, a file of the archive to lose its inputs."""

    path: str
    folder: str = ""


class Done(msgspec.Struct, frozen=True):
    """What became of a task: `lost`, what is missing in the file in words, or what was `damaged`, or an error."""

    lost: tuple[str, ...] = ()
    damaged: str = ""
    errno: int = 0
    error: str = ""


class Unfinished(Exception):
    """The file is not written: it took too long, or who asked for it does not wait any more."""


class Here:
    """Writes in this thread, for programs that have nothing else to do."""

    def archive(self, segment: Path, folder: Path, *, hurry: bool = False) -> tuple[str, ...]:
        """Archive a segment; what is missing in the file, in words. Raises Damaged, OSError."""
        from gateway.journal import archive  # with pyarrow, which a server need not have read before it can answer

        return archive.write(Segment.open(segment), folder).damage

    def strip(self, path: Path, *, hurry: bool = False) -> None:
        """Take the inputs out of a file of the archive. Raises Damaged, OSError."""
        from gateway.journal import archive

        archive.strip(path)

    def close(self) -> None:
        """Nothing is left behind."""


class Scribe:
    """Writes in a process of its own, one file after the other, until `stop` says so. Belongs to one thread.

    In a `hurry` the process competes for cores as this thread does, and nothing ends its work but `stop`.
    """

    def __init__(self, stop: Callable[[], bool] = lambda: False, patience_s: float = PATIENCE_S) -> None:
        self._stop = stop
        self._patience_s = patience_s
        self._process: subprocess.Popen[bytes] | None = None
        self._hurries = False

    def archive(self, segment: Path, folder: Path, *, hurry: bool = False) -> tuple[str, ...]:
        """As Here. Raises Unfinished, too."""
        return self._do(Task(str(segment), str(folder)), hurry=hurry)

    def strip(self, path: Path, *, hurry: bool = False) -> None:
        """As Here. Raises Unfinished, too."""
        self._do(Task(str(path)), hurry=hurry)

    def close(self) -> None:
        """End the process; what it was writing does not get its name."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.communicate()

    def _do(self, task: Task, *, hurry: bool) -> tuple[str, ...]:
        if self._process is None or self._hurries is not hurry:
            self.close()
            self._process = _start(hurry=hurry)
            self._hurries = hurry
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(msgspec.json.encode(task) + b"\n")
        done = self._answer(self._process)
        if done.damaged:
            raise Damaged(done.damaged)
        if done.error:
            raise OSError(done.errno, done.error)
        return done.lost

    def _answer(self, process: subprocess.Popen[bytes]) -> Done:
        assert process.stdout is not None
        until_s = float("inf") if self._hurries else time.monotonic() + self._patience_s
        answered = select.poll()
        answered.register(process.stdout, select.POLLIN)
        while not answered.poll(LOOK_S * 1000):
            if self._stop() or time.monotonic() > until_s:
                self.close()
                raise Unfinished
        line = process.stdout.readline()
        if not line:
            self.close()
            ended = process.returncode
            how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
            raise OSError(errno.ECHILD, f"the process that wrote it ended with {how}")
        return msgspec.json.decode(line, type=Done)


def _start(*, hurry: bool) -> subprocess.Popen[bytes]:
    """Raises OSError."""
    command = [sys.executable, "-m", __name__, str(os.getpid()), "hurry" if hurry else "idle"]
    pipe = subprocess.PIPE
    # Not a session of its own: Linux gives each session the same share of a core, whatever its processes would take.
    return subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, process_group=0, env=host.bare_environment())


def main(parent: int, pace: str) -> int:
    """Do the tasks that come over standard input until it is closed, or the process `parent` ends."""
    if not host.end_with(parent):
        return 1
    host.set_name(NAME)
    if pace == "idle":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    for line in sys.stdin.buffer:
        done = _perform(msgspec.json.decode(line, type=Task))
        sys.stdout.buffer.write(msgspec.json.encode(done) + b"\n")
        sys.stdout.buffer.flush()
    return 0


def _perform(task: Task) -> Done:
    try:
        if task.folder:
            return Done(Here().archive(Path(task.path), Path(task.folder)))
        Here().strip(Path(task.path))
    except Damaged as error:
        return Done(damaged=str(error))
    except OSError as error:
        return Done(errno=error.errno or errno.EIO, error=error.strerror or "the disk does not answer")
    return Done()


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), sys.argv[2]))
