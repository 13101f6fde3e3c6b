"""Runs the Dockerfile's own instructions without Docker, then serves from the result as compose.yaml would.

An overlay of this machine's file system stands in for the base image, so RUN lines run as they are written and write
to a scratch folder alone. The last stage is then made read-only and ENTRYPOINT and CMD run in it as USER, with no
capability, no network but loopback, and only the variables that ENV sets. Proved: the health check passes, a model
answers, nothing but /data and /tmp can be written, and SIGTERM ends it with exit code 0.

Started by scripts/prove_image.sh as process 1 of new mount and process namespaces: whatever it starts ends with it.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import socket
import string
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
HEALTHY_WITHIN_S, STOPPED_WITHIN_S = 60, 35
ADDRESS = "http://127.0.0.1:8080"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CHROOT = shutil.which("chroot", path=PATH) or "chroot"


@dataclass
class Stage:
    """One FROM: where its file system is mounted, and what its instructions have set so far."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    folder: str = "/"
    user: str = "0:0"
    healthcheck: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def path(self, name: str) -> Path:
        """The path on this machine of `name` inside the stage, taken from its WORKDIR when relative."""
        return self.root / os.path.normpath(os.path.join(self.folder, name)).lstrip("/")


def instructions(text: str) -> list[tuple[str, str]]:
    """The lines of a Dockerfile as (instruction, argument): comments dropped, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in pairs]


def say(text: str) -> None:
    print(f"prove_image: {text}", flush=True)


def fail(text: str) -> None:
    say(f"FAILED: {text}")
    sys.exit(1)


def new_stage(scratch: Path, name: str) -> Stage:
    """A stage whose base is this machine, with `python` where an official Python image has it."""
    upper, work, root = (scratch / name / part for part in ("upper", "work", "root"))
    for part in (upper, work, root):
        part.mkdir(parents=True)
    upper.chmod(0o755)
    mount("-t", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", "overlay", str(root))
    mount("-t", "proc", "proc", str(root / "proc"))
    mount("--rbind", "/dev", str(root / "dev"))
    # Not a symbolic link: a virtual environment would look for the standard library beside it.
    interpreter = os.path.realpath(sys.executable)
    python = root / "usr/local/bin/python"
    python.unlink(missing_ok=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(interpreter)} "$@"\n')
    python.chmod(0o755)
    # An interpreter below a private home folder must be reachable for USER; this changes the overlay alone.
    for parent in Path(interpreter).parents:
        inside = root / str(parent).lstrip("/")
        inside.chmod(inside.stat().st_mode | 0o011)
    return Stage(root)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def build(text: str, scratch: Path) -> Stage:
    """Carries out every instruction and returns the last stage. One that is not known here ends the proof."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for word, rest in instructions(text):
        say(f"{word} {rest}"[:160])
        if word == "FROM":
            name = rest.partition(" AS ")[2] or "final"
            stage = stages[name] = new_stage(scratch, name)
            continue
        assert stage is not None, "FROM comes first"
        if word == "ENV":
            expanded = string.Template(rest).substitute(stage.environment)
            stage.environment |= dict(pair.split("=", 1) for pair in shlex.split(expanded))
        elif word == "WORKDIR":
            stage.folder = os.path.join(stage.folder, rest)
            stage.path(".").mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            stage.user = rest
        elif word == "COPY":
            copy(stage, stages, shlex.split(rest))
        elif word == "RUN":
            run(stage, rest)
        elif word == "HEALTHCHECK":
            stage.healthcheck = json.loads(rest.partition("CMD ")[2])
        elif word == "ENTRYPOINT":
            stage.entrypoint = json.loads(rest)
        elif word == "CMD":
            stage.command = json.loads(rest)
        elif word not in ("EXPOSE", "VOLUME"):
            fail(f"this script does not know the instruction {word}")
    assert stage is not None, "a Dockerfile has a FROM"
    return stage


def copy(stage: Stage, stages: dict[str, Stage], words: list[str]) -> None:
    """COPY of files and folders by name, out of the repository or of another stage."""
    base: Path | None = None
    if words[0].startswith("--from="):
        base = stages[words.pop(0).removeprefix("--from=")].root
    *sources, target = words
    for name in sources:
        source = base / name.lstrip("/") if base else REPOSITORY / name
        into = stage.path(target)
        if source.is_dir():
            ignore = None if base else shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(source, into, symlinks=True, dirs_exist_ok=True, ignore=ignore)
        elif source.is_file():
            into = into / source.name if target.endswith("/") else into
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into)
        else:
            fail(f"COPY finds no {name}")


def run(stage: Stage, line: str) -> None:
    """RUN, by the shell, as root; the machine's own settings for its package index are the only ones it sees."""
    from_outside = {name: value for name, value in os.environ.items() if re.match(r"(?i)pip_|ssl_|.*_proxy$", name)}
    command = [CHROOT, str(stage.root), "/bin/sh", "-c", f"cd {shlex.quote(stage.folder)} && {line}"]
    if subprocess.run(command, env=from_outside | {"HOME": os.environ.get("HOME", "/")} | stage.environment).returncode:
        fail(f"RUN {line}")


def as_user(stage: Stage, command: list[str]) -> list[str]:
    """`command` inside the stage as its USER, as cap_drop and no-new-privileges would have it."""
    user, _, group = stage.user.partition(":")
    drop = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    within = ["/bin/sh", "-c", f'cd {shlex.quote(stage.folder)} && exec "$@"', "sh", *command]
    return [CHROOT, str(stage.root), "setpriv", f"--reuid={user}", f"--regid={group}", *drop, *within]


def harden(stage: Stage, scratch: Path) -> None:
    """Makes the stage's root read-only, with /tmp in memory, /data as a volume and the examples as /models."""
    volume = scratch / "data"
    shutil.copytree(stage.path("/data"), volume)
    owner = stage.path("/data").stat()
    os.chown(volume, owner.st_uid, owner.st_gid)
    mount("--bind", str(volume), str(stage.path("/data")))
    mount("--bind", "-o", "ro", str(REPOSITORY / "examples"), str(stage.path("/models")))
    mount("-t", "tmpfs", "-o", "size=64m,mode=1777,noexec,nosuid,nodev", "tmpfs", str(stage.path("/tmp")))
    mount("-o", "remount,ro", str(stage.root))


def leave_the_network() -> None:
    """Moves this process, and so all that it starts, to a network that has loopback and nothing else."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x40000000):  # CLONE_NEWNET
        fail(f"no network namespace: {os.strerror(ctypes.get_errno())}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up and running


def ask(path: str, document: object = None) -> tuple[int, bytes]:
    """Status and body of a GET, or of a POST of `document`; status 0 while nothing listens."""
    data = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(ADDRESS + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def prove(stage: Stage) -> None:
    """Starts the image's command and checks what the docstring of this module promises."""
    nothing_to_write = as_user(stage, ["touch", "/opt/headgate/written", "/models/written", "/var/written"])
    refused = subprocess.run(nothing_to_write, env=stage.environment, stderr=subprocess.PIPE, text=True)
    if refused.stderr.count("Read-only file system") != 3:
        fail(f"the root file system can be written: {refused.stderr}")

    say(f"starting {' '.join(stage.entrypoint + stage.command)} as user {stage.user}")
    command = as_user(stage, stage.entrypoint + stage.command)
    server = subprocess.Popen(command, env=stage.environment, stdin=subprocess.DEVNULL)
    check = as_user(stage, stage.healthcheck)
    wait_for(
        server,
        "the health check",
        lambda: subprocess.run(check, env=stage.environment, stderr=subprocess.DEVNULL).returncode == 0,
    )
    say("the health check passes")
    wait_for(server, "readiness", lambda: ask("/v2/models/tiny/ready")[0] == 200)

    request = {"inputs": [{"name": input_name(), "datatype": "FP32", "shape": [1, 30], "data": [0.5] * 30}]}
    status, body = ask("/v2/models/tiny/infer", request)
    if status != 200:
        fail(f"the inference is answered with {status}: {body.decode(errors='replace')[:300]}")
    answer = json.loads(body)
    say(
        f"model {answer['model_name']} version {answer['model_version']} answers: {json.dumps(answer['outputs'])[:200]}"
    )

    server.send_signal(signal.SIGTERM)
    try:
        code = server.wait(STOPPED_WITHIN_S)
    except subprocess.TimeoutExpired:
        fail(f"the server runs {STOPPED_WITHIN_S} s after SIGTERM")
    if code:
        fail(f"the server ends with exit code {code} after SIGTERM")
    say("SIGTERM ends the server with exit code 0")


def input_name() -> str:
    """What the model itself calls its input."""
    return str(json.loads(ask("/v2/models/tiny")[1])["inputs"][0]["name"])


def wait_for(server: subprocess.Popen[bytes], what: str, is_so: Callable[[], bool]) -> None:
    """Asks four times a second until `is_so`, at most HEALTHY_WITHIN_S seconds and while the server runs."""
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    while not is_so():
        if server.poll() is not None:
            fail(f"the server ended with exit code {server.returncode} before {what}")
        if time.monotonic() > deadline:
            fail(f"no {what} within {HEALTHY_WITHIN_S} s")
        time.sleep(0.25)


def main() -> None:
    scratch = Path(sys.argv[1])
    scratch.chmod(0o755)
    stage = build((REPOSITORY / "Dockerfile").read_text(), scratch)
    harden(stage, scratch)
    leave_the_network()
    prove(stage)
    say("proved")


if __name__ == "__main__":
    main()
