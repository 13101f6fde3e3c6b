"""Links: who may make which, what a token permits, and that nothing but the whole token of a good key is taken."""

from __future__ import annotations

import asyncio
import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.feedback.links import BadLink, ExpiredLink, Key, Link, LinkKeys
from tests.feedback.app import DAY_NS, NOW_NS, Desk

NOW_S = NOW_NS // 10**9
LINK = Link("l", "flights", "0190a5e2-0000-7000-8000-000000000000", None, "late", (), NOW_S + 60, "")


def make(desk: Desk, **wish: Any) -> Any:
    return asyncio.run(desk.request("POST", "/v1/feedback-links", wish))


def test_what_was_signed_is_verified(tmp_path: Path) -> None:
    keys = LinkKeys(tmp_path / "new" / "keys.json")
    link = Link("l", "m", "p", 3, "n", (True, 1, 1.5, "a"), NOW_S + 60, "somebody")
    found = keys.verify(keys.sign(link), NOW_S)
    assert found == link
    assert [type(value) for value in found.values] == [bool, int, float, str]


def test_a_link_ends_at_its_second(tmp_path: Path) -> None:
    keys = LinkKeys(tmp_path / "keys.json")
    token = keys.sign(LINK)
    assert keys.verify(token, LINK.expires_s - 1) == LINK
    with pytest.raises(ExpiredLink):
        keys.verify(token, LINK.expires_s)


def test_no_change_of_a_token_is_taken(tmp_path: Path) -> None:
    """Every character is replaced in turn, and the token is cut at every place."""
    keys = LinkKeys(tmp_path / "keys.json")
    token = keys.sign(LINK)
    for place, character in enumerate(token):
        for other in {"A", "B", ".", "_"} - {character}:
            changed = token[:place] + other + token[place + 1 :]
            with pytest.raises(BadLink):
                keys.verify(changed, NOW_S)
        with pytest.raises(BadLink):
            keys.verify(token[:place], NOW_S)
    for longer in (token + "A", token + "=", "A" + token, token + "." + token):
        with pytest.raises(BadLink):
            keys.verify(longer, NOW_S)


def test_a_token_of_another_server_is_not_taken(tmp_path: Path) -> None:
    one, two = LinkKeys(tmp_path / "one.json"), LinkKeys(tmp_path / "two.json")
    two.sign(LINK)
    with pytest.raises(BadLink):
        two.verify(one.sign(LINK), NOW_S)


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60), st.from_regex(r"[0-9a-f]{8}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{43}", fullmatch=True)
    )
)
def test_any_other_text_is_a_bad_link(text: str) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        keys = LinkKeys(Path(folder) / "keys.json")
        keys.sign(LINK)
        with pytest.raises(BadLink):
            keys.verify(text, NOW_S)


def test_a_key_that_was_taken_out_voids_its_links_and_a_new_one_signs(tmp_path: Path) -> None:
    """1. A key signs. 2. A second key is added behind it: both verify, the second signs. 3. The first is taken out."""
    path = tmp_path / "keys.json"
    keys = LinkKeys(path)
    old = keys.sign(LINK)
    first = json.loads(path.read_bytes())
    second = {"id": "second", "secret": "ab" * 32}
    path.write_text(json.dumps([*first, second]))
    new = keys.sign(LINK)
    assert new.startswith("second.")
    assert keys.verify(old, NOW_S) == keys.verify(new, NOW_S) == LINK
    path.write_text(json.dumps([second]))
    assert keys.verify(new, NOW_S) == LINK
    with pytest.raises(BadLink):
        keys.verify(old, NOW_S)


def test_the_keys_are_for_their_owner_alone_and_random(tmp_path: Path) -> None:
    one, two = LinkKeys(tmp_path / "one.json"), LinkKeys(tmp_path / "two.json")
    one.sign(LINK)
    two.sign(LINK)
    assert stat.S_IMODE((tmp_path / "one.json").stat().st_mode) == 0o600
    (a,), (b,) = (json.loads((tmp_path / name).read_bytes()) for name in ("one.json", "two.json"))
    assert len(bytes.fromhex(a["secret"])) == 32
    assert a["secret"] != b["secret"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "two.json"]


def test_processes_that_sign_first_at_once_agree_on_a_key(tmp_path: Path) -> None:
    tokens: list[str] = []
    threads = [threading.Thread(target=lambda: tokens.append(LinkKeys(tmp_path / "k").sign(LINK))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [LinkKeys(tmp_path / "k").verify(token, NOW_S) for token in tokens] == [LINK] * 8


def test_keys_that_are_damaged_are_told_without_their_content(tmp_path: Path) -> None:
    (tmp_path / "k").write_text('[{"id": "a", "secret": 5}]')
    with pytest.raises(ValueError, match="k is damaged"):
        LinkKeys(tmp_path / "k").sign(LINK)


def test_keys_are_not_shown(tmp_path: Path) -> None:
    assert "ab" * 32 not in repr(Key("a", "ab" * 32))


# -- POST /v1/feedback-links


def test_a_link_is_made_for_a_known_prediction(desk: Desk) -> None:
    prediction = desk.predictions.add(span=2)
    reply = make(desk, prediction_id=f"{prediction}#1", name="late", expires_in="12h", source="pax-17")
    assert reply.status == 201
    assert reply.json["expires_at"] == "2026-09-22T02:13:20Z"
    address = "http://models.test/f/"
    assert reply.json["url"].startswith(address)
    token = reply.json["url"].removeprefix(address)
    link = LinkKeys(desk.folder / "link-keys.json").verify(token, NOW_S)
    assert link == Link(reply.json["link_id"], "flights", prediction, 1, "late", (), NOW_S + 12 * 3600, "pax-17")
    assert desk.events() == []


def test_a_link_begins_with_the_public_url_where_one_is_set(tmp_path: Path) -> None:
    desk = Desk(tmp_path, public_url="https://models.example.org/serving")
    reply = make(desk, prediction_id=desk.predictions.add(), name="late")
    assert reply.json["url"].startswith("https://models.example.org/serving/f/")
    desk.feedback.close()


def test_the_default_expiry_is_a_week(desk: Desk) -> None:
    reply = make(desk, prediction_id=desk.predictions.add(), name="late")
    assert reply.json["expires_at"] == "2026-09-28T14:13:20Z"


@pytest.mark.parametrize(
    ("wish", "status", "field", "words"),
    [
        ({"name": "gauge"}, 422, "name", "declares no feedback named 'gauge'"),
        ({"name": "stars", "values": [1, 6]}, 422, "values", "declared as an integer from 1 to 5, got 6"),
        ({"row": 1}, 422, "row", "there is no row 1"),
        ({"model": "trains"}, 422, "model", "not 'trains'"),
        ({"expires_in": 367 * 86400}, 400, "expires_in", "<= 31622400"),
        ({"expires_in": "367d"}, 422, "expires_in", "or such as 12h or 7d, got 367d"),
        ({"expires_in": "0d"}, 422, "expires_in", "got 0d"),
        ({"expires_in": 0}, 400, "expires_in", "expires_in"),
        ({"expires_in": "soon"}, 400, "expires_in", "expires_in"),
        ({"source": "a\n"}, 422, "source.id", "control"),
        ({"prediction_id": "x"}, 422, "prediction_id", "must be a UUID"),
        ({"colour": "red"}, 400, "colour", "colour"),
    ],
)
def test_a_link_that_no_declaration_allows_is_refused(
    desk: Desk, wish: dict[str, Any], status: int, field: str | None, words: str
) -> None:
    reply = make(desk, **({"prediction_id": desk.predictions.add(), "name": "late"} | wish))
    assert (reply.status, reply.json.get("field")) == (status, field), reply.body
    assert words in reply.json["error"]


def test_a_link_for_an_unknown_prediction_needs_the_model(desk: Desk) -> None:
    unknown = "00000000-0000-0000-0000-000000000000"
    reply = make(desk, prediction_id=unknown, name="late")
    assert (reply.status, reply.json["field"]) == (422, "model")
    assert "2 models declare" in reply.json["error"]
    assert make(desk, prediction_id=unknown, name="late", model="trains").status == 201


def test_keys_that_cannot_be_written_are_an_overload(desk: Desk) -> None:
    desk.folder.parent.mkdir(parents=True)
    desk.folder.write_text("a file where the folder should be")
    reply = make(desk, prediction_id=desk.predictions.add(), name="late")
    assert (reply.status, reply.json["code"]) == (503, "not-ready")
    assert str(desk.folder) not in reply.json["error"]


def test_a_link_ends_with_its_time(desk: Desk) -> None:
    url = make(desk, prediction_id=desk.predictions.add(), name="late", expires_in="2d").json["url"]
    path = url.removeprefix("http://models.test")
    assert asyncio.run(desk.request("GET", path)).status == 200
    desk.now_ns += 2 * DAY_NS
    assert asyncio.run(desk.request("GET", path)).status == 410
