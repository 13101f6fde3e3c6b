"""Each check told good and bad facts, and the doctor itself on a machine as it is."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest

from gateway import doctor, host
from gateway.doctor import Check, Runtime
from gateway.models import config
from gateway.models.source import ModelFolder, VersionFiles, wanted_versions
from gateway.settings import Settings

GIB = 1 << 30
MIB = 1 << 20


def version(number: int, *, verified: bool = True, complete: bool = True, waiting: str = "") -> VersionFiles:
    return VersionFiles(number, Path("models/m") / str(number), "f", complete, verified, waiting)


def folder(name: str, *versions: VersionFiles, toml: bytes = b"", error: str = "") -> ModelFolder:
    parsed = None if error else config.parse(toml)
    return ModelFolder(name, parsed, error, {each.version: each for each in versions})


def folders(*each: ModelFolder) -> Mapping[str, ModelFolder]:
    return {one.name: one for one in each}


def run(code: str, **environ: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("numbers", "status"), [((3, 10, 14), "fail"), ((3, 11, 0), "ok"), ((3, 14, 1), "ok"), ((4, 0, 0), "ok")]
)
def test_an_interpreter_that_is_too_old_fails(numbers: tuple[int, int, int], status: str) -> None:
    check = doctor.check_python(numbers, "CPython")
    assert check.status == status
    assert ".".join(map(str, numbers)) in check.found
    assert bool(check.advice) == (status == "fail")


@pytest.mark.parametrize(
    ("requirement", "installed", "status"),
    [
        ("numpy>=2.1", "2.1", "ok"),
        ("numpy>=2.1", "2.1.0", "ok"),
        ("numpy>=2.1.0", "2.1", "ok"),
        ("numpy>=2.1", "2.10.3", "ok"),
        ("numpy>=2.1", "2.0.9", "fail"),
        ("onnxruntime>=1.28.1", "1.28.1.dev3", "ok"),
        ("onnxruntime>=1.28.1", "1.28.0", "fail"),
        ("uvicorn<0.55,>=0.54", "0.54.9", "ok"),
        ("uvicorn<0.55,>=0.54", "0.55.0", "fail"),
        ("uvicorn<0.55,>=0.54", "0.53.1", "fail"),
        ("a==1.0", "1.0.0", "ok"),
        ("a==1.0", "1.0.1", "fail"),
        ("a!=1.0", "1.0", "fail"),
        ("a!=1.0", "1.1", "ok"),
        ("a<=1.5", "1.5.0", "ok"),
        ("a<=1.5", "1.5.1", "fail"),
        ("a>1.5", "1.5", "fail"),
        ("a>1.5", "1.6", "ok"),
        ("extra[http]>=2; python_version > '3'", "2", "ok"),
        ("a>=1", "unknown", "fail"),
        ("bare", "0", "ok"),
    ],
)
def test_a_library_out_of_bounds_fails(requirement: str, installed: str, status: str) -> None:
    name = requirement.split(";")[0].split("[")[0].split(">")[0].split("<")[0].split("=")[0].split("!")[0]
    check = doctor.check_libraries([requirement], {name: installed})
    assert check.status == status
    assert f"{name} {installed}" in check.found
    assert check.advice == (f"install {requirement}" if status == "fail" else "")


def test_a_missing_library_fails_and_one_in_order_is_not_named_in_the_advice() -> None:
    check = doctor.check_libraries(["numpy>=2", "uvloop>=0.22"], {"numpy": "2.4"})
    assert check == Check("libraries", "fail", "numpy 2.4, uvloop missing", "install uvloop>=0.22")


def test_a_package_without_metadata_is_a_warning() -> None:
    assert doctor.check_libraries(None, {}).status == "warn"


def test_telemetry_must_be_off_before_the_import() -> None:
    assert doctor.check_telemetry("1", imported_before_us=False).status == "ok"
    assert doctor.check_telemetry("1", imported_before_us=True).status == "warn"
    assert doctor.check_telemetry("0", imported_before_us=False).status == "fail"
    assert doctor.check_telemetry(None, imported_before_us=False).status == "fail"


def test_a_runtime_that_does_not_run_or_lacks_a_provider_fails() -> None:
    good = Runtime(("CUDAExecutionProvider", "CPUExecutionProvider"), ("0", "0"))
    assert doctor.check_runtime(good, ("CPUExecutionProvider",)).status == "ok"
    missing = doctor.check_runtime(good, ("TensorrtExecutionProvider", "CPUExecutionProvider"))
    assert missing.status == "fail"
    assert missing.advice.endswith("has TensorrtExecutionProvider")
    assert doctor.check_runtime(Runtime(error="broken"), ()).found == "broken"
    assert doctor.check_runtime(Runtime(error="broken"), ()).status == "fail"


@pytest.mark.parametrize(("entries", "status"), [(("0", "0"), "ok"), (("0", "1"), "warn"), ((), "warn")])
def test_spinning_threads_are_a_warning(entries: tuple[str, ...], status: str) -> None:
    assert doctor.check_spinning(Runtime(spinning=entries)).status == status


def test_the_cores_are_shown_with_their_division() -> None:
    check = doctor.check_cores(host.Cores(7.5, "cgroup v2 cpu.max", 64, 16, 7.5), sessions=2, setting=0)
    assert check.status == "ok"
    assert check.found == (
        "7.5 usable (host 64, affinity 16, cgroup quota 7.5; cgroup v2 cpu.max decides); 3 per session for 2 sessions"
    )


def test_more_threads_than_cores_are_a_warning() -> None:
    two = host.Cores(2.0, "affinity", 8, 2, None)
    assert doctor.check_cores(two, 1, setting=2).status == "ok"
    check = doctor.check_cores(two, 1, setting=3)
    assert (check.status, check.advice) == ("warn", "lower intra_op_threads to at most 2")
    assert "3 per session for 1 session, as set" in check.found


def test_less_than_one_core_is_a_warning() -> None:
    check = doctor.check_cores(host.Cores(0.5, "cgroup v2 cpu.max", 8, 8, 0.5), 1, setting=0)
    assert check.status == "warn"
    assert "1 per session" in check.found


@pytest.mark.parametrize(
    ("limit", "free", "largest", "status"),
    [
        (4 * GIB, 2 * GIB, 100 * MIB, "ok"),
        (4 * GIB, 712 * MIB, 100 * MIB, "ok"),
        (4 * GIB, 711 * MIB, 100 * MIB, "warn"),
        (711 * MIB, 700 * MIB, 100 * MIB, "fail"),
    ],
)
def test_memory_must_hold_a_version_in_quarantine(limit: int, free: int, largest: int, status: str) -> None:
    check = doctor.check_memory(host.Memory(limit, "cgroup v2 memory.max", 64 * GIB, free), 512 * MIB, largest)
    assert check.status == status
    assert "quarantine may take 712 MiB" in check.found


def test_unknown_memory_is_a_warning() -> None:
    assert doctor.check_memory(None, MIB, 0).status == "warn"


def test_the_arena_is_noted_for_the_models_that_keep_it() -> None:
    off = folder("a", version(1), toml=b"[session]\nmemory_arena = false\n")
    both = doctor.check_arena(folders(off, folder("b", version(1)), folder("c", error="broken")))
    assert (both.status, both.found) == ("ok", "on for 1 of 2 models")
    assert both.advice
    assert doctor.check_arena(folders(off)) == Check("memory arena", "ok", "on for 0 of 1 model")


@pytest.mark.parametrize(
    ("soft", "status", "found"),
    [
        (1024, "warn", "1024 (may be raised to 524288): at most 512 connections"),
        (4095, "warn", "4095 (may be raised to 524288): at most 2047 connections"),
        (4096, "ok", "4096 (may be raised to 524288): at most 2048 connections"),
        (None, "ok", "unlimited"),
    ],
)
def test_few_open_files_are_a_warning(soft: int | None, status: str, found: str) -> None:
    check = doctor.check_open_files(host.OpenFiles(soft, 524288))
    assert (check.status, check.found) == (status, found)


def test_an_unknown_limit_of_open_files_is_a_warning() -> None:
    assert doctor.check_open_files(None).status == "warn"


def test_models_in_order_are_counted() -> None:
    check = doctor.check_models(folders(folder("a", version(1), version(2)), folder("b", version(9))), "", Settings())
    assert check == Check("models", "ok", "models folder 'models': 2 models, 3 versions, 0 without a manifest")


def test_a_model_folder_that_cannot_be_read_fails() -> None:
    check = doctor.check_models({}, "No such file or directory", Settings())
    assert (check.status, check.found) == ("fail", "models folder 'models': No such file or directory")


def test_a_model_whose_configuration_is_broken_fails_with_its_name() -> None:
    check = doctor.check_models(folders(folder("a", version(1)), folder("b", error="no such key")), "", Settings())
    assert (check.status, check.advice) == ("fail", "repair b: no such key")


def test_an_empty_model_folder_is_a_warning() -> None:
    assert doctor.check_models({}, "", Settings()).status == "warn"


def test_versions_without_a_manifest_are_a_warning_only_where_one_is_required() -> None:
    bare = folders(folder("a", version(1, verified=False)))
    assert doctor.check_models(bare, "", Settings()).status == "ok"
    required = dataclasses.replace(Settings(), require_manifest=True)
    assert doctor.check_models(bare, "", required).status == "warn"
    assert doctor.check_models(folders(folder("a", version(1))), "", required).status == "ok"


def test_a_version_that_is_still_arriving_is_a_warning_with_its_name() -> None:
    arriving = folders(folder("a", version(3, complete=False, waiting="model.onnx has 1 of 2 bytes")))
    check = doctor.check_models(arriving, "", Settings())
    assert (check.status, check.advice) == ("warn", "not complete yet: a version 3: model.onnx has 1 of 2 bytes")


def test_the_sessions_are_those_that_the_rules_ask_for() -> None:
    three = (version(1), version(2), version(3))
    assert wanted_versions({}) == 1
    assert wanted_versions(folders(folder("a", *three), folder("b", version(1)))) == 2
    assert wanted_versions(folders(folder("a", *three, toml=b'[versions]\npolicy = "all"\n'))) == 3
    assert wanted_versions(folders(folder("a", *three, toml=b"[aliases]\nchampion = 1\n"))) == 2
    assert wanted_versions(folders(folder("a", *three, error="broken"))) == 1


@pytest.mark.parametrize(
    ("place", "status"),
    [
        (host.Place(True, "", 2 * GIB), "ok"),
        (host.Place(False, "", GIB), "ok"),
        (host.Place(True, "", GIB - 1), "warn"),
        (host.Place(True, "Read-only file system", 2 * GIB), "fail"),
    ],
)
def test_the_data_folder_must_be_writable_and_have_room(place: host.Place, status: str) -> None:
    check = doctor.check_data(place, "data")
    assert check.status == status
    assert ("(will be made)" in check.found) is not place.exists
    assert place.refused in check.found


def test_a_port_that_cannot_be_had_fails_with_the_reason() -> None:
    assert doctor.check_port("::1", 0, "") == Check("port", "ok", "::1 port any free one: free")
    check = doctor.check_port("127.0.0.1", 80, "Permission denied")
    assert (check.status, check.found) == ("fail", "127.0.0.1 port 80: Permission denied")


def test_a_clock_that_cannot_be_right_fails() -> None:
    assert doctor.check_clock(0.0, 1_800_000_000, True) == Check("clock", "ok", "2027-01-15T08:00:00Z, synchronised")
    assert doctor.check_clock(1e-7, 1_800_000_000, None).status == "ok"
    assert doctor.check_clock(0.0, 1_800_000_000, False).status == "warn"
    assert doctor.check_clock(0.0, 0.0, True).status == "fail"
    assert doctor.check_clock(-1.0, 1_800_000_000, True).status == "fail"


def test_root_is_a_warning() -> None:
    assert doctor.check_user(0).status == "warn"
    assert doctor.check_user(1000) == Check("user", "ok", "uid 1000")


def test_variables_are_shown_by_name_and_never_by_value() -> None:
    check = doctor.check_variables({"HEADGATE_PORT": "sesame", "HEADGATE_CONFIG": "sesame", "HOME": "/"})
    assert check == Check("variables", "ok", "HEADGATE_CONFIG, HEADGATE_PORT")
    assert doctor.check_variables({}).status == "ok"


def test_variables_of_a_kubernetes_service_are_a_warning() -> None:
    check = doctor.check_variables({"HEADGATE_PORT": "tcp://10.0.0.1:80", "HEADGATE_HOST": "::"})
    assert check.status == "warn"
    assert check.found == "HEADGATE_HOST; ignored as made by Kubernetes: HEADGATE_PORT"


def test_the_worst_status_decides() -> None:
    ok, warn, fail = Check("a", "ok", ""), Check("b", "warn", ""), Check("c", "fail", "")
    assert doctor.worst([]) == "ok"
    assert doctor.worst([ok, ok]) == "ok"
    assert doctor.worst([ok, warn]) == "warn"
    assert doctor.worst([fail, warn, ok]) == "fail"


def test_the_table_has_a_line_per_check_and_one_for_advice() -> None:
    text = doctor.render([Check("python", "ok", "3.11"), Check("user", "warn", "root", "be another")])
    assert text.splitlines() == [
        "ok    python  3.11",
        "warn  user    root",
        "              -> be another",
        "1 ok, 1 warn, 0 fail",
    ]


def test_the_json_holds_the_same_checks() -> None:
    document = json.loads(doctor.render_json([Check("user", "warn", "root", "be another")]))
    assert document == {
        "status": "warn",
        "checks": [{"name": "user", "status": "warn", "found": "root", "advice": "be another"}],
    }


def test_the_test_model_is_a_valid_model_of_one_node() -> None:
    model = onnx.load_from_string(doctor._IDENTITY)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Identity"]


@pytest.fixture
def healthy(tmp_path: Path) -> Settings:
    """A model folder with one bare model, and a data folder yet to be made."""
    (tmp_path / "models" / "tiny" / "1").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "1" / "model.onnx").write_bytes(doctor._IDENTITY)
    return dataclasses.replace(
        Settings(), models=tmp_path / "models", data=tmp_path / "data", port=0, quiet_s=0.0, quarantine_memory_bytes=MIB
    )


def test_a_healthy_machine_passes_and_nothing_is_left_behind(healthy: Settings, tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor.examine(healthy, {})}
    for name in ("python", "onnxruntime", "spinning", "memory", "memory arena", "models", "data", "port", "variables"):
        assert checks[name].status == "ok", checks[name]
    assert checks["models"].found.endswith("1 model, 1 version, 1 without a manifest")
    assert "pytest" not in checks["libraries"].found
    assert checks["onnxruntime"].found.startswith("ran a model; ")
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_every_fault_of_the_settings_is_found_in_one_run(healthy: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        settings = dataclasses.replace(
            healthy,
            models=tmp_path / "absent",
            data=tmp_path / "file" / "data",
            port=taken.getsockname()[1],
            providers=("NoSuchExecutionProvider",),
        )
        failed = [check.name for check in doctor.examine(settings, {}) if check.status == "fail"]
    assert [name for name in failed if name != "libraries"] == ["onnxruntime", "models", "data", "port"]


def test_the_exit_code_is_one_only_where_a_check_failed(
    healthy: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Check("user", "warn", "root", "be another")
    monkeypatch.setattr(doctor, "examine", lambda settings: [good])
    assert doctor.main(healthy) == 0
    assert capsys.readouterr().out == doctor.render([good])
    monkeypatch.setattr(doctor, "examine", lambda settings: [good, Check("port", "fail", "taken")])
    assert doctor.main(healthy, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["status"] == "fail"


def test_importing_the_doctor_does_not_import_onnxruntime() -> None:
    assert run("import gateway.doctor, sys; print('onnxruntime' in sys.modules)") == "False"


_REPORT = """
import sys
from gateway import doctor, settings
checks = {check.name: check.status for check in doctor.examine(settings.load({"port": "0"}, {}), {})}
print(checks["telemetry"], checks["onnxruntime"], "onnxruntime" in sys.modules)
"""


def test_the_opt_out_reaches_onnxruntime_whatever_was_set_outside() -> None:
    assert run(_REPORT, ORT_DISABLE_TELEMETRY="0") == "ok ok True"


def test_an_import_of_onnxruntime_ahead_of_the_opt_out_is_noticed() -> None:
    # An empty module in its place: the real one would report this very process.
    pretend = "import sys, types\nsys.modules['onnxruntime'] = types.ModuleType('onnxruntime')\n"
    assert run(pretend + _REPORT) == "warn fail True"


def test_onnxruntime_is_not_even_imported_where_the_opt_out_was_cleared() -> None:
    assert run(f"import os, gateway\ndel os.environ['ORT_DISABLE_TELEMETRY']\n{_REPORT}") == "fail fail False"
