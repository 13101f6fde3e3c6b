"""The wish book: what operators asked for is kept over every kind of end, and a damaged book is set aside."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import NotReady, SettingError
from gateway.models.wishes import AliasMove, ModelWishes, WishBook

UNLOADED = ModelWishes(all_held=True)


def test_wishes_are_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "data" / "wishes.json"
    wishes = ModelWishes({"champion": AliasMove(2, 1), "old": AliasMove(None, 3)}, False, (3,), (1, 2))
    book = WishBook(path)
    book.put("flights", wishes)
    book.put("tiny", UNLOADED)
    assert WishBook(path).get("flights") == wishes
    assert WishBook(path).get("tiny") == UNLOADED
    assert WishBook(path).get("unheard-of") == ModelWishes()


def test_without_a_path_they_live_as_long_as_the_process(tmp_path: Path) -> None:
    book = WishBook(None)
    book.put("m", UNLOADED)
    assert book.get("m") == UNLOADED
    assert not list(tmp_path.iterdir())


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_around_the_rename_leaves_the_old_book_or_the_new_one(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "wishes.json"
    WishBook(path).put("m", ModelWishes(held=(1,)))
    program = f"""
        import os, pathlib, signal, sys
        from gateway.models.wishes import ModelWishes, WishBook
        rename = pathlib.Path.replace
        def killed(self, target):
            if {moment!r} == "after":
                rename(self, target)
            os.kill(os.getpid(), signal.SIGKILL)
        pathlib.Path.replace = killed
        WishBook(pathlib.Path(sys.argv[1])).put("m", ModelWishes(held=(1, 2)))
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path)], cwd=Path.cwd(), check=False)
    assert child.returncode == -signal.SIGKILL
    book = WishBook(path)
    assert book.get("m").held == ((1,) if moment == "before" else (1, 2))
    book.put("m", ModelWishes(held=(3,)))
    assert WishBook(path).get("m").held == (3,)
    assert [entry.name for entry in tmp_path.iterdir()] == ["wishes.json"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'{"m": {"held": [1',
        b"\x00\xff\xfe",
        b'{"m": "\xff"}',
        b"[]",
        b'{"m": {"held": "all"}}',
        b'{"m": {"aliases": {"champion": 1}}}',
        b'{"m": ' * 50_000,
    ],
)
def test_a_damaged_book_is_set_aside_and_logged_and_the_server_starts(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "wishes.json"
    path.write_bytes(damage)
    with caplog.at_level(logging.ERROR):
        book = WishBook(path)
    assert book.get("m") == ModelWishes()
    assert (tmp_path / "wishes.bad").read_bytes() == damage
    (record,) = caplog.records
    assert vars(record)["event"] == "wishes-lost"
    assert "wishes.bad" in vars(record)["reason"]
    book.put("m", UNLOADED)
    assert WishBook(path).get("m") == UNLOADED


def test_a_book_that_cannot_be_opened_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "wishes.json").mkdir()
    with pytest.raises(SettingError, match=r"data: wishes\.json in it cannot be read \(Is a directory\)"):
        WishBook(tmp_path / "wishes.json")


def test_what_the_disk_does_not_take_is_refused_and_not_half_remembered(tmp_path: Path) -> None:
    book = WishBook(tmp_path / "wishes.json")
    book.put("m", ModelWishes(held=(1,)))
    os.remove(tmp_path / "wishes.json")
    (tmp_path / "wishes.new").mkdir()
    with pytest.raises(NotReady, match="could not be kept on disk") as caught:
        book.put("m", UNLOADED)
    assert str(tmp_path) not in caught.value.message
    assert book.get("m") == ModelWishes(held=(1,))


# Aliases: the later of model.toml and the API wins


@pytest.mark.parametrize(
    ("declared", "move", "stands"),
    [
        pytest.param({"champion": 1}, None, {"champion": 1}, id="what model.toml says stands"),
        pytest.param({"champion": 1}, AliasMove(2, 1), {"champion": 2}, id="until the API moves it"),
        pytest.param({"champion": 3}, AliasMove(2, 1), {"champion": 3}, id="until model.toml says something else"),
        pytest.param({}, AliasMove(2, 1), {}, id="nothing is something else, too"),
        pytest.param({}, AliasMove(2, None), {"champion": 2}, id="an alias that only the API knows"),
        pytest.param({"champion": 5}, AliasMove(2, None), {"champion": 5}, id="until model.toml knows it"),
        pytest.param({"champion": 1}, AliasMove(None, 1), {}, id="removed by the API"),
        pytest.param({"champion": 2}, AliasMove(None, 1), {"champion": 2}, id="declared anew since"),
    ],
)
def test_the_later_of_model_toml_and_the_api_wins(
    declared: dict[str, int], move: AliasMove | None, stands: dict[str, int]
) -> None:
    wishes = ModelWishes({"champion": move} if move is not None else {})
    assert wishes.effective_aliases(declared) == stands


aliases = st.sampled_from(["champion", "challenger", "old"])


@settings(deadline=None)
@given(
    st.dictionaries(aliases, st.integers(1, 5)),
    st.dictionaries(aliases, st.builds(AliasMove, st.none() | st.integers(1, 5), st.none() | st.integers(1, 5))),
)
def test_aliases_do_not_touch_each_other_and_nothing_is_changed_by_asking(
    declared: dict[str, int], moves: dict[str, AliasMove]
) -> None:
    before = dict(declared)
    stands = ModelWishes(moves).effective_aliases(declared)
    assert declared == before
    for alias in ("champion", "challenger", "old"):
        alone = ModelWishes({alias: moves[alias]} if alias in moves else {}).effective_aliases(
            {alias: declared[alias]} if alias in declared else {}
        )
        assert stands.get(alias) == alone.get(alias)


@pytest.mark.parametrize(
    ("wishes", "version", "out"),
    [
        (ModelWishes(), None, False),
        (ModelWishes(), 1, False),
        (UNLOADED, None, True),
        (UNLOADED, 1, True),
        (ModelWishes(all_held=True, pinned=(1,)), 1, False),
        (ModelWishes(all_held=True, pinned=(1,)), 2, True),
        (ModelWishes(all_held=True, pinned=(1,)), None, False),
        (ModelWishes(held=(1,)), 1, True),
        (ModelWishes(held=(1,)), 2, False),
        (ModelWishes(held=(1,)), None, False),
    ],
)
def test_what_is_out_by_request(wishes: ModelWishes, version: int | None, out: bool) -> None:
    assert wishes.excludes(version) is out
