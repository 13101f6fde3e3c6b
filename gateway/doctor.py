"""`headgate doctor`: what the machine, the folders and the settings will do to a server, before one is started.

`examine` gathers facts and hands them to the checks; each `check_...` is a pure function from facts to one `Check`.
Nothing is changed and no network is used.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gateway import __version__, host
from gateway.http import selftest
from gateway.kinds import GIB, MIB
from gateway.ledger.dialect import sqlite_advice
from gateway.models.manifest import MODEL
from gateway.models.options import SessionOptions
from gateway.models.source import ModelFolder, Source, wanted_versions
from gateway.settings import CONFIG_VARIABLE, PREFIX, Settings, service_links

Status = Literal["ok", "warn", "fail"]

_MIN_PYTHON = (3, 11)
_MIN_OPEN_FILES = 4096
_LOW_DISK_BYTES = GIB
# 2025-11-01: no Headgate is older, so a clock that shows less was never set.
_WALL_FLOOR_S = 1_761_955_200
_OPT_OUT = "ORT_DISABLE_TELEMETRY"
_SPINNING = ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning")
# A model of one node, y = Identity(x), both FP32[1]: IR version 8, opset 13.
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a0808011204"
    "0a02080142040a00100d"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `advice` says what to do and is empty where nothing needs to be done."""

    name: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What onnxruntime said: its providers, the spinning entries of a session made by our own code, and any error."""

    providers: tuple[str, ...] = ()
    spinning: tuple[str, ...] = ()
    error: str = ""


def examine(settings: Settings, environ: Mapping[str, str] | None = None, root: Path = host.ROOT) -> list[Check]:
    """Every check, in the order in which they are shown."""
    environ = os.environ if environ is None else environ
    opt_out, modules = host.c_variable(_OPT_OUT), list(sys.modules)
    # Without the opt-out, even the one-node model below would be reported.
    runtime = _runtime(settings.providers) if opt_out == "1" else Runtime(error=f"not tried without {_OPT_OUT}=1")
    cores = host.cores(root)
    folders, refused = _models(settings)
    first, second = time.monotonic(), time.monotonic()
    return [
        check_python(sys.version_info[:3], platform.python_implementation()),
        check_libraries(*_libraries()),
        check_uvicorn(selftest.moved()),
        Check("sqlite", *sqlite_advice()),
        check_telemetry(opt_out, _imported_before_us(modules)),
        check_runtime(runtime, settings.providers),
        check_spinning(runtime),
        check_cores(cores, wanted_versions(folders), settings.intra_op_threads),
        check_memory(host.memory(root), settings.quarantine_memory_bytes, _largest(folders)),
        check_arena(folders),
        check_open_files(host.open_files(root)),
        check_models(folders, refused, settings),
        check_data(host.place(settings.data), str(settings.data)),
        check_port(settings.host, settings.port, host.refused_port(settings.host, settings.port)),
        check_clock(second - first, time.clock_gettime(time.CLOCK_REALTIME), host.is_clock_synchronised()),
        check_user(os.geteuid()),
        check_variables(environ),
    ]


def render(checks: list[Check]) -> str:
    """The checks as a table, one line each and one more below where there is advice."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.found}")
        if check.advice:
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.advice}")
    counts = {status: sum(check.status == status for check in checks) for status in ("ok", "warn", "fail")}
    lines.append(", ".join(f"{count} {status}" for status, count in counts.items()))
    return "\n".join(lines) + "\n"


def render_json(checks: list[Check]) -> str:
    """The checks as one JSON document: the worst status, and the list."""
    return json.dumps({"status": worst(checks), "checks": [asdict(check) for check in checks]}, indent=2) + "\n"


def worst(checks: list[Check]) -> Status:
    """The most serious status among the checks."""
    found = {check.status for check in checks}
    return "fail" if "fail" in found else "warn" if "warn" in found else "ok"


def main(settings: Settings, as_json: bool = False) -> int:
    """Print the checks; 1 where one failed, else 0."""
    checks = examine(settings)
    print(render_json(checks) if as_json else render(checks), end="")
    return int(worst(checks) == "fail")


def check_python(version: tuple[int, int, int], implementation: str) -> Check:
    """The interpreter against the oldest one supported."""
    found = f"Headgate {__version__} on {implementation} {'.'.join(map(str, version))}"
    if version[:2] < _MIN_PYTHON:
        return Check("python", "fail", found, f"use Python {'.'.join(map(str, _MIN_PYTHON))} or newer")
    return Check("python", "ok", found)


def check_libraries(requirements: list[str] | None, installed: Mapping[str, str]) -> Check:
    """Installed versions by name against what the package's metadata demands; None: the package is not installed."""
    if requirements is None:
        return Check(
            "libraries", "warn", "headgate is not installed as a package", "install it, so that pip checks them"
        )
    found, wrong = [], []
    for requirement in requirements:
        name, bounds = _requirement(requirement)
        version = installed.get(name)
        found.append(f"{name} {version or 'missing'}")
        if version is None or not all(_holds(version, operator, bound) for operator, bound in bounds):
            wrong.append(requirement)
    if wrong:
        return Check("libraries", "fail", ", ".join(found), f"install {', '.join(wrong)}")
    return Check("libraries", "ok", ", ".join(found))


def check_uvicorn(moved: list[str]) -> Check:
    """uvicorn and httptools against what the fast door takes from them without a promise; `moved` is what differs."""
    if moved:
        return Check("uvicorn", "fail", "; ".join(moved), "install the version that the package demands")
    return Check("uvicorn", "ok", "does what the fast door needs of it")


def check_telemetry(value: str | None, imported_before_us: bool) -> Check:
    """Whether onnxruntime was told not to report, before it looked: it remembers what it saw at its import."""
    if value != "1":
        found = f"{_OPT_OUT} is {value!r} in this process"
        return Check("telemetry", "fail", found, f"let {_OPT_OUT} stand as gateway set it")
    if imported_before_us:
        found = "onnxruntime was imported before gateway could opt out"
        return Check("telemetry", "warn", found, "import gateway before onnxruntime")
    return Check("telemetry", "ok", f"off: {_OPT_OUT}=1 was set before onnxruntime was imported")


def check_runtime(runtime: Runtime, configured: tuple[str, ...]) -> Check:
    """Whether onnxruntime loads and runs a model, and this build of it has the configured providers."""
    if runtime.error:
        return Check(
            "onnxruntime", "fail", runtime.error, "repair the telemetry opt-out or the onnxruntime installation"
        )
    missing = [name for name in configured if name not in runtime.providers]
    found = f"ran a model; providers of this build: {', '.join(runtime.providers)}"
    if missing:
        advice = f"set providers to some of these, or install a build that has {', '.join(missing)}"
        return Check("onnxruntime", "fail", found, advice)
    return Check("onnxruntime", "ok", found)


def check_spinning(runtime: Runtime) -> Check:
    """Idle threads must sleep: those that spin take the cores from the other sessions."""
    if runtime.spinning and set(runtime.spinning) == {"0"}:
        return Check("spinning", "ok", "off: idle threads of a session sleep")
    found = f"{', '.join(_SPINNING)} = {', '.join(runtime.spinning)}" if runtime.spinning else "unknown"
    return Check("spinning", "warn", found, "idle sessions may burn cores; check the onnxruntime build")


def check_cores(cores: host.Cores, sessions: int, setting: int) -> Check:
    """The cores that may be used and how they are divided over the sessions."""
    threads = host.intra_op_threads(cores.count, sessions, setting=setting)
    quota = "none" if cores.quota is None else f"{cores.quota:g}"
    found = (
        f"{cores.count:g} usable (host {cores.host}, affinity {cores.affinity}, cgroup quota {quota}; "
        f"{cores.source} decides); {threads} per session for {sessions} "
        f"{_plural('session', sessions)}{', as set' if setting else ''}"
    )
    if setting > max(1.0, cores.count):
        return Check("cores", "warn", found, f"lower intra_op_threads to at most {max(1, int(cores.count))}")
    if cores.count < 1:
        return Check(
            "cores", "warn", found, "give it at least one core: below that every request waits for the next period"
        )
    return Check("cores", "ok", found)


def check_memory(memory: host.Memory | None, quarantine_bytes: int, largest_model: int) -> Check:
    """Whether there is room to try a new version: twice the largest model file and what quarantine may use besides."""
    if memory is None:
        return Check("memory", "warn", "unknown: /proc/meminfo cannot be read", "check by hand that there is enough")
    need = quarantine_bytes + 2 * largest_model
    found = (
        f"{_amount(memory.free)} free of {_amount(memory.limit)} ({memory.source}); quarantine may take {_amount(need)}"
    )
    if memory.limit < need:
        return Check("memory", "fail", found, "raise the memory limit or lower quarantine_memory_bytes")
    if memory.free < need:
        return Check("memory", "warn", found, "free some memory: a new version may fail in quarantine for want of it")
    return Check("memory", "ok", found)


def check_arena(folders: Mapping[str, ModelFolder]) -> Check:
    """How many models let onnxruntime keep the memory of their largest run. A note, never a fault."""
    configs = [folder.config for folder in folders.values() if folder.config is not None]
    kept = sum(config.session.memory_arena for config in configs)
    found = f"on for {kept} of {len(configs)} {_plural('model', len(configs))}"
    if not kept:
        return Check("memory arena", "ok", found)
    advice = "where inputs vary in shape, memory_arena = false in model.toml gives memory back at some cost in latency"
    return Check("memory arena", "ok", found, advice)


def check_open_files(limit: host.OpenFiles | None) -> Check:
    """The limit of open files, half of which may be connections."""
    cap = host.connection_cap(limit)
    if limit is None:
        return Check("open files", "warn", "unknown: the limit cannot be read", "check `ulimit -n`")
    if limit.soft is None or cap is None:
        return Check("open files", "ok", "unlimited")
    found = f"{limit.soft} (may be raised to {limit.hard or 'any number'}): at most {cap} connections"
    if limit.soft < _MIN_OPEN_FILES:
        advice = (
            f"raise it to {_MIN_OPEN_FILES} or more: `ulimit -n {_MIN_OPEN_FILES}`, or LimitNOFILE= in a systemd unit"
        )
        return Check("open files", "warn", found, advice)
    return Check("open files", "ok", found)


def check_models(folders: Mapping[str, ModelFolder], refused: str, settings: Settings) -> Check:
    """Whether the model folder can be read and what would be served from it; `refused` says why it cannot."""
    where = f"models folder {str(settings.models)!r}"
    if refused:
        return Check("models", "fail", f"{where}: {refused}", "create it, or point --models at the model repository")
    versions = [version for folder in folders.values() for version in folder.versions.values()]
    unverified = [version for version in versions if not version.verified]
    found = (
        f"{where}: {len(folders)} {_plural('model', len(folders))}, {len(versions)} "
        f"{_plural('version', len(versions))}, {len(unverified)} without a manifest"
    )
    broken = [f"{name}: {folder.error}" for name, folder in folders.items() if folder.error]
    if broken:
        return Check("models", "fail", found, f"repair {'; '.join(broken)}")
    if not versions:
        return Check("models", "warn", found, f"put a model at <name>/<version>/{MODEL}")
    if unverified and settings.require_manifest:
        return Check("models", "warn", found, "they are refused by require_manifest; use `headgate model add`")
    waiting = [
        f"{name} version {files.version}: {files.waiting}"
        for name, folder in folders.items()
        for files in folder.versions.values()
        if not files.complete
    ]
    if waiting:
        return Check("models", "warn", found, f"not complete yet: {'; '.join(waiting)}")
    return Check("models", "ok", found)


def check_data(place: host.Place, name: str) -> Check:
    """Whether the data folder can be written, or made, and has room."""
    state = "" if place.exists else " (will be made)"
    found = f"data folder {name!r}{state}: {_amount(place.free)} free"
    if place.refused:
        found = f"data folder {name!r}{state}: {place.refused}"
        return Check("data", "fail", found, "make it writable for this user, or point --data elsewhere")
    if place.free < _LOW_DISK_BYTES:
        return Check("data", "warn", found, f"have at least {_amount(_LOW_DISK_BYTES)} free")
    return Check("data", "ok", found)


def check_port(address: str, port: int, refused: str) -> Check:
    """Whether the port can be listened on; `refused` is the operating system's reason why not."""
    found = f"{address} port {port or 'any free one'}"
    if refused:
        advice = "stop what listens there (perhaps Headgate itself), or choose another --host or --port"
        return Check("port", "fail", f"{found}: {refused}", advice)
    return Check("port", "ok", f"{found}: free")


def check_clock(step_s: float, wall_s: float, synchronised: bool | None) -> Check:
    """Both clocks: deadlines go by the monotonic one, records carry the time of day."""
    found = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(wall_s))}, "
    found += {True: "synchronised", False: "not synchronised", None: "synchronisation unknown"}[synchronised]
    if step_s < 0:
        return Check("clock", "fail", f"the monotonic clock went back by {-step_s:g} s", "deadlines cannot hold here")
    if wall_s < _WALL_FLOOR_S:
        return Check("clock", "fail", found, "set the clock: records and labels would carry impossible times")
    if synchronised is False:
        return Check("clock", "warn", found, "run chrony or another NTP client, so that records of machines compare")
    return Check("clock", "ok", found)


def check_user(euid: int) -> Check:
    """A server of files from elsewhere must not be root."""
    if euid == 0:
        return Check("user", "warn", "root", "run as a user that can only read the models and write the data folder")
    return Check("user", "ok", f"uid {euid}")


def check_variables(environ: Mapping[str, str]) -> Check:
    """The HEADGATE_ variables that are set, by name: a value may be a secret."""
    links = service_links(environ)
    names = sorted(name for name in environ if name.startswith(PREFIX) and name not in links)
    found = ", ".join(names) if names else f"no {PREFIX}* variable, {CONFIG_VARIABLE} neither"
    if links:
        found += f"; ignored as made by Kubernetes: {', '.join(links)}"
        return Check("variables", "warn", found, "set enableServiceLinks: false in the pod, or rename the Service")
    return Check("variables", "ok", found)


def _runtime(configured: tuple[str, ...]) -> Runtime:
    """Load and run the one-node model through our own session, with those configured providers that are there."""
    try:
        import numpy as np
        import onnxruntime

        from gateway.models.session import Session

        available = tuple(onnxruntime.get_available_providers())
        chosen = tuple(name for name in configured if name in available) or available[-1:]
        session = Session(_IDENTITY, SessionOptions(providers=chosen))
        (answer,) = session.run({"x": np.ones(1, np.float32)}, ["y"])
        if answer.tolist() != [1.0]:
            return Runtime(available, error=f"the test model answered {answer.tolist()} instead of [1.0]")
        options: Any = session._session.get_session_options()
        return Runtime(available, tuple(options.get_session_config_entry(key) for key in _SPINNING))
    except Exception as error:  # onnxruntime raises many unrelated types, and a broken install is what is looked for
        reason = " ".join(str(error).split())[:300]
        return Runtime(error=f"onnxruntime does not work here: {type(error).__name__}: {reason}")


def _libraries() -> tuple[list[str] | None, dict[str, str]]:
    """The requirements of the installed package without its extras, and the versions that are there."""
    try:
        requirements = [text for text in importlib.metadata.requires("headgate") or [] if "extra ==" not in text]
    except importlib.metadata.PackageNotFoundError:
        return None, {}
    installed = {}
    for requirement in requirements:
        name, _ = _requirement(requirement)
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return requirements, installed


def _requirement(text: str) -> tuple[str, list[tuple[str, str]]]:
    """``uvicorn<0.55,>=0.54`` as its name and its bounds."""
    bare = text.partition(";")[0].strip()
    name = re.match(r"[A-Za-z0-9._-]+", bare)
    bounds = re.findall(r"(>=|<=|==|!=|<|>)\s*([0-9][0-9A-Za-z.]*)", bare)
    return (name[0] if name else bare), bounds


def _holds(version: str, operator: str, bound: str) -> bool:
    """Whether `version` meets one bound, by the numbers of its release alone."""
    ours, theirs = _release(version), _release(bound)
    width = max(len(ours), len(theirs))
    ours, theirs = ours + (0,) * (width - len(ours)), theirs + (0,) * (width - len(theirs))
    return {
        ">=": ours >= theirs,
        "<=": ours <= theirs,
        "==": ours == theirs,
        "!=": ours != theirs,
        "<": ours < theirs,
        ">": ours > theirs,
    }[operator]


def _release(version: str) -> tuple[int, ...]:
    leading = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


def _imported_before_us(modules: list[str]) -> bool:
    """Whether onnxruntime stands before this package in the order of imports."""
    return "onnxruntime" in modules and modules.index("onnxruntime") < modules.index("gateway")


def _models(settings: Settings) -> tuple[dict[str, ModelFolder], str]:
    try:
        return Source(settings.models, settings.quiet_s).scan(), ""
    except OSError as error:
        return {}, error.strerror or type(error).__name__


def _largest(folders: Mapping[str, ModelFolder]) -> int:
    """Bytes of the largest model file."""
    sizes = [0]
    for folder in folders.values():
        for version in folder.versions.values():
            try:
                sizes.append((version.folder / MODEL).stat().st_size)
            except OSError:
                continue
    return max(sizes)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _amount(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
