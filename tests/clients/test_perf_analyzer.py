"""NVIDIA's perf_analyzer, a client in C++, loads the server for a moment and makes sense of all that it reads.

Its own package in the index is a placeholder, but the wheels of tritonclient carried the program until 2.41. It is
linked to two libraries that it calls only for memory on a GPU and for uploading models; where they are not installed,
ones that only have the names are made with the C compiler.
"""

from __future__ import annotations

import csv
import platform
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.clients.ondemand import FetchFailed, unavailable, wheel
from tests.servers import Server

pytestmark = [pytest.mark.slow(4), pytest.mark.timeout(600)]

REQUIREMENT = "tritonclient==2.41.0"
SHA256 = "cf4ed5df836fa99937678a9fd852f86ba05c7b83656dd0a540e20afdb9ab4629"
PROGRAM = "tritonclient-2.41.0.data/data/bin/perf_analyzer"

STANDINS = {
    "libb64.so.0d": "base64_decode_block base64_encode_block base64_encode_blockend base64_init_decodestate "
    "base64_init_encodestate",
    "libcudart.so.12": "cudaFree cudaGetErrorName cudaGetErrorString cudaIpcGetMemHandle cudaMalloc cudaMemcpy "
    "cudaSetDevice",
}
"""Libraries and the functions that the program wants of them; here each ends the program if it is called after all."""


@pytest.fixture(scope="module")
def perf_analyzer(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs it: the one that is installed, else the one from the wheel."""
    installed = shutil.which("perf_analyzer")
    if installed is not None:
        return [installed]
    if platform.machine() != "x86_64":
        pytest.skip("perf_analyzer is not installed, and the one from the wheel needs x86-64")
    compiler = shutil.which("cc")
    if compiler is None:
        unavailable("perf_analyzer is not installed, and the one from the wheel needs a C compiler, as in gcc")
    folder = tmp_path_factory.mktemp("perf_analyzer")
    try:
        with zipfile.ZipFile(wheel(pytestconfig.cache.mkdir("third-party"), REQUIREMENT, SHA256)) as archive:
            program = folder / "perf_analyzer"
            program.write_bytes(archive.read(PROGRAM))
    except FetchFailed as error:
        unavailable(error)
    program.chmod(0o755)
    for library, names in STANDINS.items():
        source, versions = folder / f"{library}.c", folder / f"{library}.map"
        functions = "".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in names.split())
        source.write_text(functions)
        versions.write_text(f"{library} {{ global: *; }};\n")
        options = ["-shared", "-fPIC", f"-Wl,-soname,{library}", f"-Wl,--version-script,{versions}"]
        subprocess.run([compiler, *options, "-o", str(folder / library), str(source)], check=True, timeout=60)
    command = ["env", f"LD_LIBRARY_PATH={folder}", str(program)]
    tried = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
    if tried.returncode:
        unavailable(f"perf_analyzer does not run on this machine: {tried.stderr.strip()[:300]}")
    return command


STEADY = ["--request-rate-range", "100"]
LOADS = {
    "binary": [*STEADY, "--input-tensor-format", "binary"],
    "json": [*STEADY, "--input-tensor-format", "json", "--output-tensor-format", "json"],
    "batches": [*STEADY, "-b", "4"],
    "concurrency": ["--concurrency-range", "2"],
}


@pytest.mark.parametrize(
    ("model", "load"),
    [
        *[(model, form) for model in ("tiny", "flights", "sum_and_difference") for form in ("binary", "json")],
        *[("tiny", "batches"), ("tiny", "concurrency")],
    ],
)
def test_perf_analyzer_measures_the_server_and_its_statistics(
    perf_analyzer: list[str], server: Server, tmp_path: Path, model: str, load: str
) -> None:
    """Windows of 60 requests each. The server's phases come from the difference of two polls of the statistics."""
    report = tmp_path / "report.csv"
    options = ["-m", model, "-i", "http", "-u", server.address, "-f", str(report)]
    # Any windows will do: how fast and steady a shared machine is, is not what is tested.
    options += ["--measurement-mode", "count_windows", "--measurement-request-count", "60"]
    options += ["--stability-percentage", "999", "--max-trials", "4"]
    done = subprocess.run([*perf_analyzer, *options, *LOADS[load]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "Successful request count" in done.stdout, done.stdout
    with open(report, newline="") as file:
        (row,) = csv.DictReader(line for line in file if line.strip())
    assert float(row["Inferences/Second"]) > 10
    phases = [int(row[f"Server {phase}"]) for phase in ("Queue", "Compute Input", "Compute Infer", "Compute Output")]
    assert all(0 <= phase < 10_000_000 for phase in phases), phases
    assert sum(phases) > 0
    assert int(row["p99 latency"]) >= int(row["p50 latency"]) > 0
