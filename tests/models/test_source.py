"""The source: what it declares about folders as people, copying tools and accidents leave them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.models.manifest import GOLDEN, MANIFEST, MODEL, sha256
from gateway.models.source import ModelFolder, Source, VersionFiles


class Clock:
    """The time of day, `ahead` of the real one."""

    ahead = 0.0

    def __call__(self) -> float:
        import time

        return time.time() + self.ahead


def bare(folder: Path, content: bytes = b"model") -> Path:
    """A version folder without a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL).write_bytes(content)
    return folder


def packaged(folder: Path, **files: bytes) -> Path:
    """A version folder with a manifest of model.onnx and these further files."""
    contents = {MODEL: b"model", **{name.replace("_", "."): content for name, content in files.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        entries[name] = {"size": len(content), "sha256": sha256(content)}
    manifest = {"model": folder.parent.name, "version": int(folder.name), "files": entries}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def scan(root: Path, quiet_s: float = 0.0) -> dict[str, ModelFolder]:
    return Source(root, quiet_s).scan()


def version(root: Path, number: int = 1, model: str = "m") -> VersionFiles:
    return scan(root)[model].versions[number]


def test_every_model_and_version_is_declared(tmp_path: Path) -> None:
    bare(tmp_path / "a" / "1")
    bare(tmp_path / "a" / "12")
    packaged(tmp_path / "b" / "2")
    found = scan(tmp_path)
    assert {name: sorted(model.versions) for name, model in found.items()} == {"a": [1, 12], "b": [2]}
    assert all(files.complete for model in found.values() for files in model.versions.values())
    assert (found["a"].versions[1].verified, found["b"].versions[2].verified) == (False, True)
    assert all(model.config is not None and not model.error for model in found.values())


def test_what_is_neither_model_nor_version_is_ignored(tmp_path: Path) -> None:
    bare(tmp_path / "m" / "1")
    (tmp_path / "README.md").write_text("a file beside the models")
    (tmp_path / "lost+found").mkdir()
    bare(tmp_path / ".git" / "objects")
    for junk in ("01", "0", "-1", "1.0", "v2", "latest", "..2", "1 ", "٣", ".adding-2-00ff", "1" * 19):
        bare(tmp_path / "m" / junk)
    (tmp_path / "m" / "3").write_text("a file where a version would be")
    (tmp_path / "m" / "4").mkdir()
    (tmp_path / "m" / "5").mkdir()
    (tmp_path / "m" / "5" / "notes.txt").write_text("no model")
    (tmp_path / "m" / "1" / "6").mkdir()
    bare(tmp_path / "m" / "1" / "7")
    found = scan(tmp_path)
    assert list(found) == ["m"]
    assert list(found["m"].versions) == [1]


def test_a_bare_model_is_complete_once_it_has_been_quiet(tmp_path: Path) -> None:
    bare(tmp_path / "m" / "1")
    clock = Clock()
    source = Source(tmp_path, 2.0, clock)
    files = source.scan()["m"].versions[1]
    assert not files.complete
    assert files.waiting == "written less than 2 s ago"
    clock.ahead = 2.5
    assert source.scan()["m"].versions[1].complete


def test_every_write_starts_the_quiet_time_anew_whatever_its_modification_time_says(tmp_path: Path) -> None:
    folder = bare(tmp_path / "m" / "1")
    source = Source(tmp_path, 2.0)
    os.utime(folder / MODEL, (0, 0))
    assert not source.scan()["m"].versions[1].complete


def test_golden_samples_beside_a_bare_model_must_be_quiet_too(tmp_path: Path) -> None:
    folder = bare(tmp_path / "m" / "1")
    alone = version(tmp_path).fingerprint
    (folder / GOLDEN).write_text("{}")
    assert version(tmp_path).fingerprint != alone


def test_a_clock_that_was_set_back_does_not_keep_a_model_waiting(tmp_path: Path) -> None:
    bare(tmp_path / "m" / "1")
    clock = Clock()
    clock.ahead = -3600.0
    assert Source(tmp_path, 2.0, clock).scan()["m"].versions[1].complete


def test_a_version_with_a_manifest_needs_no_quiet_time(tmp_path: Path) -> None:
    packaged(tmp_path / "m" / "1")
    assert Source(tmp_path, 3600.0).scan()["m"].versions[1].complete


@pytest.mark.parametrize("size", [None, 0, 1, 4])
def test_a_half_copied_file_keeps_its_version_waiting_and_is_named(tmp_path: Path, size: int | None) -> None:
    folder = packaged(tmp_path / "m" / "1", baseline_json=b"abc")
    if size is None:
        (folder / MODEL).unlink()
    else:
        (folder / MODEL).write_bytes(b"model"[:size])
    files = version(tmp_path)
    assert not files.complete
    assert files.waiting == f"model.onnx has {size or 0} of 5 bytes"


def test_copied_in_any_order_a_version_is_complete_with_its_last_file_and_not_before(tmp_path: Path) -> None:
    origin = packaged(tmp_path / "origin" / "m" / "1", golden_json=b"{}", baseline_json=b"[]")
    names = sorted(os.listdir(origin))
    for turn in range(len(names)):
        order = names[turn:] + names[:turn]
        target = tmp_path / f"models{turn}" / "m" / "1"
        target.mkdir(parents=True)
        for name in order:
            declared = Source(target.parent.parent, 3600.0).scan().get("m")
            before = declared.versions.get(1) if declared is not None else None
            assert before is None or not before.complete, order
            shutil.copyfile(origin / name, target / name)
        assert Source(target.parent.parent, 3600.0).scan()["m"].versions[1].complete, order


def test_a_file_that_is_too_long_is_complete_so_that_trying_it_says_what_is_wrong(tmp_path: Path) -> None:
    folder = packaged(tmp_path / "m" / "1")
    (folder / MODEL).write_bytes(b"models")
    assert version(tmp_path).complete


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b'{"model": "other", "version": 1, "files": {}}'])
def test_a_damaged_manifest_is_complete_so_that_trying_it_says_what_is_wrong(tmp_path: Path, damage: bytes) -> None:
    folder = packaged(tmp_path / "m" / "1")
    (folder / MANIFEST).write_bytes(damage)
    files = version(tmp_path)
    assert (files.complete, files.verified) == (True, True)


def test_every_change_of_a_file_is_a_new_fingerprint_and_no_change_is_the_old_one(tmp_path: Path) -> None:
    folder = packaged(tmp_path / "m" / "1")
    seen = {version(tmp_path).fingerprint}
    assert version(tmp_path).fingerprint in seen
    for moment, content in enumerate((b"modem", b"model", b"longer model")):
        (folder / MODEL).write_bytes(content)
        os.utime(folder / MODEL, (moment, moment))
        seen.add(version(tmp_path).fingerprint)
    other = folder / "copy"
    other.write_bytes(b"longer model")
    os.utime(other, (2, 2))
    other.replace(folder / MODEL)
    seen.add(version(tmp_path).fingerprint)
    (folder / MODEL).unlink()
    (folder / MODEL).symlink_to("elsewhere")
    seen.add(version(tmp_path).fingerprint)
    assert len(seen) == 6


def test_files_that_the_manifest_does_not_list_change_nothing(tmp_path: Path) -> None:
    folder = packaged(tmp_path / "m" / "1")
    before = version(tmp_path)
    (folder / "notes.txt").write_text("unlisted")
    (folder / ".model.onnx.x7Hq").write_text("what a copying tool leaves")
    assert version(tmp_path) == before


def test_a_version_whose_folder_is_a_link_is_read_and_a_model_that_is_a_link_is_seen_as_one(tmp_path: Path) -> None:
    bare(tmp_path / "store" / "v1")
    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "models" / "m" / "1").symlink_to(tmp_path / "store" / "v1")
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "models" / "m")
    found = scan(tmp_path / "models")
    assert {name: list(model.versions) for name, model in found.items()} == {"m": [1], "linked": [1]}


def test_a_folder_that_cannot_be_a_model_is_named_and_the_others_are_served(tmp_path: Path) -> None:
    bare(tmp_path / "good" / "1")
    bare(tmp_path / "bad name" / "1")
    bare(tmp_path / "stats" / "1")
    bare(tmp_path / "new\nline" / "1")
    bare(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")) / "1")
    found = scan(tmp_path)
    assert [name for name, model in found.items() if not model.error] == ["good"]
    assert sorted(found) == ["bad name", "caf\\xe9", "good", "new\nline", "stats"]
    for name in found:
        name.encode("utf-8")
    assert found["bad name"].error.startswith("a model name is 1 to 64 of")
    assert "stats" in found["stats"].error


def test_a_wrong_model_toml_is_named_and_the_versions_are_still_declared(tmp_path: Path) -> None:
    bare(tmp_path / "m" / "1")
    (tmp_path / "m" / "model.toml").write_text("[versions]\ncount = 'two'")
    model = scan(tmp_path)["m"]
    assert model.config is None
    assert "$.versions.count" in model.error
    assert list(model.versions) == [1]
    (tmp_path / "m" / "model.toml").write_text("[versions]\ncount = 2")
    config = scan(tmp_path)["m"].config
    assert config is not None
    assert config.versions.count == 2


@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "huge"])
def test_a_model_toml_that_is_no_plain_file_concerns_its_own_model_alone(tmp_path: Path, kind: str) -> None:
    bare(tmp_path / "good" / "1")
    bare(tmp_path / "m" / "1")
    toml = tmp_path / "m" / "model.toml"
    if kind == "folder":
        toml.mkdir()
    elif kind == "link":
        toml.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(toml)
    else:
        toml.write_bytes(b"#" * ((1 << 20) + 1))
    before = len(os.listdir("/proc/self/fd"))
    found = scan(tmp_path)
    assert "model.toml" in found["m"].error
    assert list(found["m"].versions) == [1]
    assert not found["good"].error
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_root_that_cannot_be_read_is_an_error_and_not_an_empty_declaration(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scan(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        scan(tmp_path / "file")


def test_an_empty_root_declares_nothing(tmp_path: Path) -> None:
    assert scan(tmp_path) == {}


def test_a_link_that_leads_back_to_itself_concerns_itself_alone(tmp_path: Path) -> None:
    bare(tmp_path / "m" / "1")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "m" / "2").symlink_to("2")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "m" / "3").symlink_to("nowhere")
    found = scan(tmp_path)
    assert sorted(found) == ["loop", "m"]
    assert not found["loop"].readable
    assert "Too many levels" in found["loop"].error
    assert found["m"].versions[1].complete
    assert not found["m"].versions[2].complete
    assert "Too many levels" in found["m"].versions[2].waiting


def test_a_folder_that_cannot_be_opened_just_now_is_not_taken_for_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare(tmp_path / "m" / "1")
    bare(tmp_path / "m" / "2")
    bare(tmp_path / "n" / "1")
    real = os.scandir

    def without_descriptors(path: Any) -> Any:
        if Path(path) in (tmp_path / "m" / "2", tmp_path / "n"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path)

    monkeypatch.setattr(os, "scandir", without_descriptors)
    found = scan(tmp_path)
    assert found["m"].versions[1].complete
    assert found["m"].versions[2].waiting == "its folder cannot be read (Too many open files)"
    assert (found["n"].readable, found["n"].error) == (False, "its folder cannot be read (Too many open files)")


def test_a_file_that_goes_while_its_folder_is_read_does_not_make_the_version_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bare(tmp_path / "m" / "1")
    passing = folder / ".model.onnx.x7Hq"
    passing.write_text("")
    real = os.scandir

    class Vanishing:
        """A listing from which a file goes once it was listed."""

        def __init__(self, path: Any) -> None:
            self._entries = real(path)

        def __enter__(self) -> Any:
            entries = list(self._entries)
            passing.unlink()
            return iter(entries)

        def __exit__(self, *_: object) -> None:
            self._entries.close()

    monkeypatch.setattr(os, "scandir", lambda path: Vanishing(path) if Path(path) == folder else real(path))
    assert version(tmp_path).complete


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(os.fsencode(name)) < 200
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, st.dictionaries(names | st.sampled_from(["1", "2", "model.toml"]), st.booleans())))
def test_any_tree_of_names_is_declared_without_an_error(tree: dict[str, dict[str, bool]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for model, entries in tree.items():
            for name, is_version in entries.items():
                if is_version:
                    bare(Path(folder, model, name))
                else:
                    Path(folder, model).mkdir(exist_ok=True)
                    Path(folder, model, name).write_text("")
        for model in scan(Path(folder)).values():
            assert model.error or model.config is not None
            assert set(model.versions) <= {int(name) for name in tree.get(model.name, {}) if name.isdecimal()}
