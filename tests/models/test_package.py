"""Packaging: a version is checked before it is seen, whole when it is seen, and never gone while it is replaced."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import LoadRejected
from gateway.models import durable
from gateway.models.manifest import Lineage, sha256
from gateway.models.package import add_version, check_version
from gateway.models.source import Source
from tests.models.crafted import crashing
from tests.onnx_models import constant_answer

pytestmark = pytest.mark.usefixtures("_one_nursery")


def file_of(tmp_path: Path, content: bytes, name: str = "trained.onnx") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def tensor(name: str, *values: float) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": [1, 4], "data": list(values)}


def samples_of(tmp_path: Path, *samples: dict[str, Any]) -> Path:
    path = tmp_path / "samples.json"
    path.write_text(json.dumps(samples))
    return path


def test_versions_are_numbered_on_and_carry_their_lineage_and_signature(tmp_path: Path) -> None:
    models = tmp_path / "models"
    lineage = Lineage("ada", "first try", "sha256:00", "abc123", {"auc": 0.75}, "2026-01-01T00:00:00+00:00")
    first = add_version(models, "m", file_of(tmp_path, constant_answer(1)), lineage=lineage)
    second = add_version(models, "m", file_of(tmp_path, constant_answer(2)))
    ninth = add_version(models, "m", file_of(tmp_path, constant_answer(9)), version=9)
    tenth = add_version(models, "m", file_of(tmp_path, constant_answer(10)))
    assert [folder.name for folder in (first, second, ninth, tenth)] == ["1", "2", "9", "10"]
    assert sorted(entry.name for entry in (models / "m").iterdir()) == ["1", "10", "2", "9"]
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest["files"] == {"model.onnx": {"size": len(constant_answer(1)), "sha256": sha256(constant_answer(1))}}
    assert manifest["lineage"]["metrics"] == {"auc": 0.75}
    assert manifest["signature"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert manifest["signature"]["batched"] is True
    report = check_version(first, "m", 1)
    assert (report.verified, report.golden_samples) == (True, 0)


def test_samples_without_answers_get_the_models_own_and_hold_it_to_them(tmp_path: Path) -> None:
    samples = samples_of(tmp_path, {"inputs": [tensor("x", 1, 2, 3, 4)]}, {"inputs": [tensor("x", 0, 0, 0, 0)]})
    folder = add_version(tmp_path / "models", "m", file_of(tmp_path, constant_answer(7)), samples=samples)
    golden = json.loads((folder / "golden.json").read_text())
    assert [sample["outputs"][0]["data"] for sample in golden["samples"]] == [[7, 7, 7, 7]] * 2
    assert check_version(folder, "m", 1).golden_samples == 2


@pytest.mark.parametrize(
    ("model", "samples", "words"),
    [
        pytest.param(b"no model", None, "", id="no model"),
        pytest.param(crashing(), None, "SIGFPE", id="a model that crashes"),
        pytest.param(
            constant_answer(7),
            [{"inputs": [tensor("x", 1, 2, 3, 4)], "outputs": [tensor("y", 7, 7, 7, 8)]}],
            "golden sample 0: output 'y' is off by up to 1",
            id="an answer it does not give",
        ),
        pytest.param(constant_answer(7), [{"inputs": [tensor("z", 1, 2, 3, 4)]}], "'z'", id="an unknown input"),
        pytest.param(constant_answer(7), [{"input": []}], "samples file is not valid", id="no sample"),
        pytest.param(constant_answer(7), {"inputs": []}, "it must be a list of requests", id="no list"),
    ],
)
def test_a_version_that_does_not_pass_leaves_nothing_behind(
    tmp_path: Path, model: bytes, samples: Any, words: str
) -> None:
    models = tmp_path / "models"
    path = None
    if samples is not None:
        path = tmp_path / "samples.json"
        path.write_text(json.dumps(samples))
    with pytest.raises(LoadRejected) as caught:
        add_version(models, "m", file_of(tmp_path, model), samples=path)
    assert words in caught.value.message
    assert list((models / "m").iterdir()) == []


def test_a_samples_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadRejected, match=r"samples file samples\.json cannot be read \(No such file or directory\)"):
        add_version(tmp_path / "models", "m", file_of(tmp_path, constant_answer(1)), samples=tmp_path / "samples.json")


@pytest.mark.parametrize("name", ["", "a b", "../m", "stats", ".m"])
def test_a_name_that_no_model_can_have_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(LoadRejected, match="cannot be used"):
        add_version(tmp_path / "models", name, file_of(tmp_path, constant_answer(1)))
    assert not (tmp_path / "models").exists()


def test_a_file_may_have_any_name_and_be_a_link(tmp_path: Path) -> None:
    real = file_of(tmp_path, constant_answer(1), "best model (3).ONNX")
    (tmp_path / "latest").symlink_to(real)
    assert add_version(tmp_path / "models", "m", real).name == "1"
    assert add_version(tmp_path / "models", "m", tmp_path / "latest").name == "2"


def test_a_version_that_exists_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    models = tmp_path / "models"
    add_version(models, "m", file_of(tmp_path, constant_answer(1)))
    with pytest.raises(FileExistsError, match="m version 1 exists already"):
        add_version(models, "m", file_of(tmp_path, constant_answer(2)), version=1)
    folder = add_version(models, "m", file_of(tmp_path, constant_answer(2)), version=1, replace=True)
    assert (folder / "model.onnx").read_bytes() == constant_answer(2)
    assert [entry.name for entry in (models / "m").iterdir()] == ["1"]


def test_a_replacement_that_does_not_pass_leaves_what_was_there(tmp_path: Path) -> None:
    models = tmp_path / "models"
    folder = add_version(models, "m", file_of(tmp_path, constant_answer(1)))
    with pytest.raises(LoadRejected):
        add_version(models, "m", file_of(tmp_path, b"no model"), version=1, replace=True)
    assert (folder / "model.onnx").read_bytes() == constant_answer(1)
    assert [entry.name for entry in (models / "m").iterdir()] == ["1"]


@pytest.mark.parametrize("moments", [1, 2])
def test_a_look_during_which_a_version_is_replaced_finds_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: int
) -> None:
    """1. The look opens the folder. 2. Another takes its place and it is deleted. Result: the other one is declared."""
    target = add_version(tmp_path / "models", "m", file_of(tmp_path, constant_answer(1)))
    editions = [tmp_path / f"edition{number}" for number in range(moments)]
    for edition in editions:
        shutil.copytree(target, edition)
    real = os.scandir

    def replaced_once_open(path: Any) -> Any:
        entries = real(path)
        if not isinstance(path, int) and Path(path) == target and editions:
            shutil.rmtree(durable.exchange(editions.pop(), target))
        return entries

    monkeypatch.setattr(os, "scandir", replaced_once_open)
    files = Source(tmp_path / "models", 0).scan()["m"].versions[1]
    assert not editions
    assert files.complete
    assert files == Source(tmp_path / "models", 0).scan()["m"].versions[1]


def test_a_version_that_is_replaced_is_at_every_moment_there(tmp_path: Path) -> None:
    target = tmp_path / "m" / "1"
    for folder in (target, *(tmp_path / f"edition{number}" for number in range(40))):
        folder.mkdir(parents=True)
    ended = threading.Event()
    found: list[bool] = []

    def look() -> None:
        while not ended.is_set():
            found.append(target.is_dir())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for number in range(40):
            shutil.rmtree(durable.exchange(tmp_path / f"edition{number}", target))
    finally:
        ended.set()
        thread.join(30)
    assert all(found)


def test_where_names_cannot_be_exchanged_a_version_is_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    monkeypatch.setattr(durable, "_RENAME_EXCHANGE", 1 << 20)
    aside = durable.exchange(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "content").read_text() == "new"
    assert (aside / "content").read_text() == "old"
    assert not (tmp_path / "new").exists()
    with pytest.raises(FileNotFoundError):
        durable.exchange(tmp_path / "nothing", tmp_path / "old")
