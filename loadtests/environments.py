"""Environments beside .venv for programs that are not part of Headgate: made on demand, from locks with hashes.

=============== =============================================== ==========================================
.venv-bench     requirements.lock and loadtests/fastapi.lock    FastAPI as a reference of the benchmark
.venv-load      loadtests/locust.lock                           locust
.venv-evidently loadtests/evidently.lock                        Evidently, beside the monitors
.venv-nannyml   loadtests/nannyml.lock                          NannyML, likewise
.venv-sketches  loadtests/sketches.lock                         DataSketches and river, likewise
=============== =============================================== ==========================================
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.processes import ROOT

FASTAPI = (".venv-bench", ("requirements.lock", "loadtests/fastapi.lock"))
LOCUST = (".venv-load", ("loadtests/locust.lock",))
EVIDENTLY = (".venv-evidently", ("loadtests/evidently.lock",))
NANNYML = (".venv-nannyml", ("loadtests/nannyml.lock",))
SKETCHES = (".venv-sketches", ("loadtests/sketches.lock",))
# Libraries that call home are told not to, which also keeps the network out of the measurement.
QUIET = {"NML_DISABLE_USAGE_LOGGING": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class NotMade(Exception):
    """An environment could not be made; the text is one sentence."""


def ensure(name: str, locks: Sequence[str]) -> Path:
    """The Python of the environment `name`, with everything in `locks`; made anew when a lock has changed."""
    folder = ROOT / name
    python = folder / "bin" / "python"
    content = b"".join((ROOT / lock).read_bytes() for lock in locks)
    digest = f"{sys.version_info[:2]} {hashlib.sha256(content).hexdigest()}"
    stamp = folder / ".installed"
    if stamp.exists() and stamp.read_text() == digest:
        return python
    print(f"making {name} from {' and '.join(locks)}", file=sys.stderr, flush=True)
    _call([sys.executable, "-m", "venv", "--clear", str(folder)])
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    for lock in locks:
        install += ["--requirement", str(ROOT / lock)]
    _call(install)
    stamp.write_text(digest)
    return python


def _call(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
        raise NotMade(f"{' '.join(command[1:4])} failed: {last}")
