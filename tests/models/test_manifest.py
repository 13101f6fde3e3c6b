"""The manifest: what is refused about names, files and the document itself, and that the refusal says which."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import LoadRejected
from gateway.models.manifest import (
    MANIFEST,
    MODEL,
    check_model_name,
    entry_for,
    is_alias,
    parse_version,
    read_file,
    read_manifest,
    sha256,
    verified_file,
)

Change = Callable[[dict[str, Any]], Any]


def written(folder: Path, document: Any, model: bytes = b"model") -> Path:
    """A version folder with this manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL).write_bytes(model)
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    (folder / MANIFEST).write_bytes(text)
    return folder


def document(**changes: Any) -> dict[str, Any]:
    """A manifest of model `m` version 1 that is right, but for the changes."""
    entry = {"size": 5, "sha256": sha256(b"model")}
    return {"model": "m", "version": 1, "files": {MODEL: entry}, **changes}


def entry_of(**changes: Any) -> dict[str, Any]:
    """The files of a manifest with a change to the model's entry."""
    return {MODEL: {"size": 5, "sha256": sha256(b"model"), **changes}}


def test_a_manifest_gives_back_what_was_written(tmp_path: Path) -> None:
    lineage = {"author": "ada", "reason": "because", "metrics": {"auc": 0.5}}
    manifest = read_manifest(written(tmp_path, document(lineage=lineage)), "m", 1)
    assert manifest.files[MODEL] == entry_for(b"model")
    assert (manifest.lineage.author, manifest.lineage.metrics) == ("ada", {"auc": 0.5})
    assert manifest.lineage.training_data == ""


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        pytest.param(b"", "manifest.json is not valid", id="empty"),
        pytest.param(b'{"model": "m", "ver', "manifest.json is not valid", id="half written"),
        pytest.param(b"\xff\xfe{}", "manifest.json is not valid", id="not UTF-8"),
        pytest.param(b"[" * 100_000, "manifest.json is not valid", id="nested too deep"),
        pytest.param([], "Expected `object`", id="a list"),
        pytest.param({"model": "m"}, "version", id="without a version"),
        pytest.param(document(version="1"), "$.version", id="version as text"),
        pytest.param(document(surprise=1), "surprise", id="an unknown key"),
        pytest.param(document(files={}), "does not list model.onnx", id="without the model"),
        pytest.param(document(files=entry_of(size="5")), "$.files[...].size", id="size as text"),
        pytest.param(document(files=entry_of(size=-1)), "the entry of model.onnx", id="negative size"),
        pytest.param(document(files=entry_of(sha256="00")), "the entry of model.onnx", id="short digest"),
        pytest.param(document(files=entry_of(sha256="G" * 64)), "the entry of model.onnx", id="no digest"),
        pytest.param(document(files=entry_of(sha256="A" * 64)), "the entry of model.onnx", id="capital digest"),
        pytest.param(document(model="other"), "is for 'other' version 1, but lies in 'm' 1", id="another model"),
        pytest.param(document(version=2), "is for 'm' version 2, but lies in 'm' 1", id="another version"),
        pytest.param(document(manifest_version=2), "manifest_version 2 is unknown", id="a later format"),
        pytest.param(
            document(files={**entry_of(), "../x": {"size": 0, "sha256": "0" * 64}}), "'../x'", id="a path upwards"
        ),
        pytest.param(
            document(files={**entry_of(), MANIFEST: {"size": 0, "sha256": "0" * 64}}), "'manifest.json'", id="itself"
        ),
    ],
)
def test_a_damaged_manifest_is_refused_in_one_sentence(tmp_path: Path, damaged: Any, words: str) -> None:
    with pytest.raises(LoadRejected) as caught:
        read_manifest(written(tmp_path, damaged), "m", 1)
    assert words in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert "\n" not in caught.value.message


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
def test_no_bytes_at_random_pass_for_a_manifest(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(LoadRejected):
        read_manifest(written(Path(folder), content), "m", 1)


def test_a_file_must_be_what_its_manifest_says(tmp_path: Path) -> None:
    folder = written(tmp_path, document(), model=b"model")
    manifest = read_manifest(folder, "m", 1)
    assert verified_file(folder, MODEL, manifest, 100) == b"model"
    (folder / MODEL).write_bytes(b"modem")
    with pytest.raises(LoadRejected, match="sha256 mismatch: model.onnx"):
        verified_file(folder, MODEL, manifest, 100)
    (folder / MODEL).write_bytes(b"mode")
    with pytest.raises(LoadRejected, match="model.onnx is 4 bytes, but its manifest says 5"):
        verified_file(folder, MODEL, manifest, 100)


def test_only_regular_files_of_the_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "1"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    before = open_descriptors()
    for name, words in (
        ("link", "link cannot be opened"),
        ("sub", "sub must be a regular file"),
        ("pipe", "pipe must be a regular file"),
        ("none", "none is missing"),
        ("../secret", "is not allowed"),
        ("/etc/passwd", "is not allowed"),
        ("a\0b", "is not allowed"),
        ("", "is not allowed"),
        ("x" * 300, "is not allowed"),
    ):
        with pytest.raises(LoadRejected) as caught:
            read_file(folder, name, 100)
        assert words in caught.value.message, name
    assert open_descriptors() == before


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LoadRejected, match="large is 1099511627776 bytes, at most 100 are taken"):
        read_file(tmp_path, "large", 100)


@pytest.mark.parametrize("name", ["m", "M9", "a.b_c-d", "9lives", "x" * 64])
def test_these_are_names_of_models(name: str) -> None:
    assert check_model_name(name) is None


@pytest.mark.parametrize(
    "name", ["", ".m", "-m", "_m", "a b", "a/b", "x" * 65, "é", "a\n", "m\0", "..", "a:b", "a%2fb", "stats"]
)
def test_these_are_not(name: str) -> None:
    assert check_model_name(name)


@pytest.mark.parametrize(
    ("text", "version"), [("1", 1), ("10", 10), ("999999999999999999", 999999999999999999), ("42", 42)]
)
def test_a_version_is_a_positive_whole_number(text: str, version: int) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "0", "01", "-1", "+1", "1.0", " 1", "1\n", "v1", "1e3", "١", "²", "1" * 19])
def test_nothing_else_is(text: str) -> None:
    assert parse_version(text) is None


@settings(deadline=None)
@given(st.text(max_size=40))
def test_no_text_is_both_a_version_and_an_alias(text: str) -> None:
    assert not (is_alias(text) and parse_version(text) is not None)


@pytest.mark.parametrize("text", ["champion", "a", "a-b_2", "x" * 32])
def test_these_are_aliases(text: str) -> None:
    assert is_alias(text)


@pytest.mark.parametrize("text", ["", "A", "1a", "a b", "x" * 33, "-a", "a\n", "é"])
def test_these_are_no_aliases(text: str) -> None:
    assert not is_alias(text)
