"""What a measurement has to be read with: machine, versions, command and how busy the machine was."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loadtests.processes import Cores

PACKAGES = ("onnxruntime", "numpy", "orjson", "msgspec", "uvicorn", "uvloop", "httptools", "starlette")


def gather(cores: Cores, rounds: int, seconds: float, arguments: Sequence[str]) -> dict[str, Any]:
    """Everything that is known before the first round."""
    wrk = subprocess.run(["wrk", "--version"], capture_output=True, text=True).stdout
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m loadtests.bench", *arguments]),
        "rounds": rounds,
        "seconds": seconds,
        "processor": _processor(),
        "machine_cores": os.cpu_count(),
        "server_cores": sorted(cores.server),
        "generator_cores": sorted(cores.generator),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "wrk": (re.findall(r"wrk (\S+)", wrk) or ["unknown"])[0],
        **{name: version(name) for name in PACKAGES},
    }


def sentence(known: Mapping[str, Any]) -> str:
    """The facts as a paragraph to stand above the table."""
    if not known["server_cores"]:
        placed = "not pinned to cores"
    elif known["server_cores"] == known["generator_cores"]:
        placed = "server and load generator on the same core"
    else:
        placed = "server on one core, load generator on another"
    packages = ", ".join(f"{name} {known[name]}" for name in ("python", *PACKAGES, "wrk"))
    return (
        f"`{known['command']}`, {known['made'][:10]}: medians of {known['rounds']} interleaved rounds of "
        f"{known['seconds']:g} s, lowest and highest ratio as spread; {placed}; {known['machine_cores']} cores of "
        f"{known['processor']}, load average {known['load_before']} before; {packages}. CPU us is the CPU "
        f"time of the servers a request, Headgate / reference."
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.machine()
