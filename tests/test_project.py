"""What the project's files agree on: versions, locks, the image, the security page, and the commands."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gateway

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-build.lock", "requirements-dev.lock")


@cache
def pyproject() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def dependencies() -> list[Requirement]:
    project = pyproject()["project"]
    assert isinstance(project, dict)
    return [Requirement(text) for text in project["dependencies"]]


def pins(name: str) -> dict[str, str]:
    """Package to version of a lock file."""
    lines = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in lines}


def test_the_version_is_the_same_wherever_it_is_written() -> None:
    project = pyproject()["project"]
    assert isinstance(project, dict)
    changelog = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    image = re.search(r"image: headgate:(\S+)", (ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert changelog is not None
    assert image is not None
    assert project["version"] == gateway.__version__ == changelog[1] == image[1]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_every_package_by_hash_and_names_no_place(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    entries = [
        entry for entry in re.sub(r"\\\n", " ", text).splitlines() if entry and not entry.lstrip().startswith("#")
    ]
    assert entries
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
    assert "://" not in text
    assert not re.search(r"^\s*(-i|--index-url|--extra-index-url|--find-links|-e)\b", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_satisfies_what_the_project_declares(name: str) -> None:
    locked = pins(name)
    for requirement in dependencies():
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), str(requirement)


def test_what_is_served_has_the_versions_that_were_tested() -> None:
    tested = pins("requirements-dev.lock")
    for name in ("requirements.lock", "requirements-build.lock"):
        assert pins(name).items() <= tested.items()


def test_the_running_tests_use_the_locked_versions_of_what_is_served() -> None:
    for package, locked in pins("requirements.lock").items():
        assert version(package) == locked


def test_no_parser_of_multipart_forms_is_installed() -> None:
    """Without it Starlette refuses to parse forms, so that no route is open to attacks on such parsers by accident."""
    assert not {"python-multipart", "multipart"} & {*pins("requirements.lock"), *pins("requirements-dev.lock")}


def test_every_runtime_dependency_has_its_reason_on_record() -> None:
    text = (ROOT / "docs/adr/0001-dependencies.md").read_text(encoding="utf-8")
    for requirement in dependencies():
        assert f"**{requirement.name}**" in text, f"{requirement.name} is missing from the record"


def dockerfile() -> str:
    """The Dockerfile with continued lines joined and comments dropped."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return re.sub(r"\\\n\s*", " ", "\n".join(line for line in lines if not line.startswith("#")))


def test_the_image_installs_nothing_but_what_the_lock_pins() -> None:
    installs = [part for line in dockerfile().splitlines() for part in line.split("&&") if " install --" in part]
    assert [re.findall(r"-r (\S+)|(--no-index)", install) for install in installs] == [
        [("requirements-build.lock", "")],
        [("requirements.lock", "")],
        [("", "--no-index")],
    ]
    for install in installs:
        assert "--no-deps" in install
        assert "--require-hashes" in install or "--no-index" in install


def test_the_image_runs_as_nobody_in_particular_and_starts_without_a_shell() -> None:
    lines = dockerfile().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert len(set(bases)) == 1
    assert "USER 10001:10001" in lines
    assert 'ENTRYPOINT ["headgate"]' in lines
    assert lines.index("USER 10001:10001") < lines.index('ENTRYPOINT ["headgate"]')
    assert any(line.startswith("HEALTHCHECK ") and "/v2/health/live" in line for line in lines)


def test_the_builder_is_sent_what_the_image_copies_and_no_more() -> None:
    copied: list[str] = []
    for line in dockerfile().splitlines():
        if line.startswith("COPY ") and "--from=" not in line:
            copied += line.split()[1:-1]
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied)


def test_compose_publishes_on_loopback_alone_and_pins_every_image() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    ports = re.findall(r'"([^"]*:\d+:\d+)"', text)
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)
    images = re.findall(r"image: (\S+)", text)
    assert len(images) == 3
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images)


def test_every_test_that_the_security_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert named
    for path, function in named:
        assert (ROOT / path).is_file(), path
        assert not function or f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{function}"


def test_ci_runs_what_a_developer_runs() -> None:
    assert (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()[-1] == "exec make check"
    assert re.search(r"^check: lint test ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("script", [".ci/run", "scripts/find-python", "scripts/lock", "scripts/prove_image.sh"])
def test_a_script_is_executable_and_its_syntax_is_right(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True, timeout=30)


def test_a_machine_without_a_usable_python_is_told_so_in_one_line() -> None:
    result = subprocess.run(
        [ROOT / "scripts/find-python"],
        env=os.environ | {"PYTHON": "no-such-python"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "needs Python 3.11 to 3.14, found none under the name no-such-python" in result.stderr


def test_ci_types_what_a_newcomer_types_and_skips_no_proof_that_could_not_be_fetched() -> None:
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("export CI=") for line in lines)
    assert lines.index("scripts/first_run.sh") < lines.index("exec make check")
