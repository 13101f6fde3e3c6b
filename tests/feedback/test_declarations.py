"""Declarations are those of the files: seen within a second, and a file that breaks leaves what it said before."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import NotReady
from gateway.feedback.declarations import MAX_BYTES, REFRESH_S, Declarations


class Folder:
    """A model folder and its declarations; `later` lets the time pass after which files are looked at again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 0.0
        self.declarations = Declarations(path, lambda: self.now)

    def write(self, model: str, text: str) -> None:
        """Write a model.toml, with a size and a time of its own."""
        (self.path / model).mkdir(parents=True, exist_ok=True)
        beside = self.path / model / "new"
        beside.write_text(text)
        beside.replace(self.path / model / "model.toml")

    def later(self) -> Declarations:
        """The declarations a while later."""
        self.now += REFRESH_S
        return self.declarations


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder without models."""
    return Folder(tmp_path)


def test_every_model_has_its_own_names(folder: Folder) -> None:
    folder.write("a", "[feedback.late]\ntype = 'boolean'")
    folder.write("b", "[feedback.late]\ntype = 'integer'\n[feedback.stars]\ntype = 'integer'")
    folder.write("c", "description = 'says nothing'")
    (folder.path / "not-a-folder").write_text("")
    (folder.path / ".hidden").mkdir()
    declarations = folder.later()
    assert set(declarations.of("b")) == {"late", "stars"}
    assert declarations.of("c") == declarations.of("absent") == declarations.of("not-a-folder") == {}
    assert {model: rule.type for model, rule in declarations.declaring("late").items()} == {
        "a": "boolean",
        "b": "integer",
    }
    assert list(declarations.find("b", "late")) == ["b"]
    assert list(declarations.find("", "stars")) == ["b"]
    assert declarations.find("a", "stars") == declarations.find("", "nothing") == {}


def test_a_change_is_seen_after_a_while_and_not_before(folder: Folder) -> None:
    folder.write("a", "[feedback.late]\ntype = 'boolean'")
    assert set(folder.later().of("a")) == {"late"}
    folder.write("a", "[feedback.early]\ntype = 'boolean'")
    folder.now += REFRESH_S / 2
    assert set(folder.declarations.of("a")) == {"late"}
    assert set(folder.later().of("a")) == {"early"}


@pytest.mark.parametrize("what", ["model.toml", "folder", "all"])
def test_what_is_gone_declares_nothing(folder: Folder, what: str) -> None:
    folder.write("a", "[feedback.late]\ntype = 'boolean'")
    assert set(folder.later().of("a")) == {"late"}
    (folder.path / "a" / "model.toml").unlink()
    if what != "model.toml":
        (folder.path / "a").rmdir()
    if what == "all":
        # A folder of models that cannot be read is a fault of this machine, and no reason to refuse labels.
        folder.path.rmdir()
    assert set(folder.later().of("a")) == ({"late"} if what == "all" else set())


@pytest.mark.parametrize("text", ["[feedback.late]\ntype = 'maybe'", "not toml", "#" * (MAX_BYTES + 1)])
def test_a_file_that_breaks_leaves_what_it_said_before_and_is_told_once(
    folder: Folder, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write("a", "[feedback.late]\ntype = 'boolean'")
    assert set(folder.later().of("a")) == {"late"}
    folder.write("a", text)
    for _ in range(3):
        assert set(folder.later().of("a")) == {"late"}
    assert [getattr(record, "event", "") for record in caplog.records] == ["declarations-unreadable"]
    folder.write("a", "[feedback.early]\ntype = 'boolean'")
    assert set(folder.later().of("a")) == {"early"}


def test_a_file_that_never_could_be_read_is_not_ready_and_says_why(folder: Folder) -> None:
    folder.write("a", "[feedback.late]\ntype = 'maybe'")
    folder.write("b", "[feedback.late]\ntype = 'boolean'")
    declarations = folder.later()
    with pytest.raises(NotReady, match=r"declarations of model 'a' cannot be read: model\.toml") as caught:
        declarations.of("a")
    assert str(folder.path) not in str(caught.value)
    assert list(declarations.declaring("late")) == ["b"]
    assert list(declarations.find("", "late")) == ["b"]
    with pytest.raises(NotReady, match="declarations of model 'a' cannot be read"):
        declarations.find("", "stars")
    assert declarations.declaring("stars") == {}, "who only asks what is there is told"
    folder.write("a", "[feedback.late]\ntype = 'text'")
    assert folder.later().of("a")["late"].type == "text"
