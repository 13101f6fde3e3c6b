"""The feedback page in a real browser: with the keyboard alone, without scripts, on a phone, nothing from elsewhere.

Where the environment variable HEADGATE_SCREENSHOTS names a folder, what the pages look like is left there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.feedback import log as logs
from gateway.feedback.event import Event
from gateway.journal.frames import Torn
from tests.feedback.browser import Browser, installed
from tests.onnx_models import identity, put
from tests.programs import missing
from tests.servers import Server

ROW = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2.5, 3, 4]}]}
MODEL = """
[feedback.late]
type = "boolean"
question = "Was your flight late?"
[feedback.stars]
type = "integer"
kind = "feedback"
min = 1
max = 5
question = "How good was this forecast, from 1 (poor) to 5 (very good)?"
[feedback.reason]
type = "category"
values = ["Weather", "Late arrival of the aircraft", "Air traffic control", "Another reason that I know"]
question = "Why was your flight late?"
[feedback.comment]
type = "text"
kind = "feedback"
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    """The path of the browser."""
    return installed() or missing("there is no Chromium (Debian package chromium); HEADGATE_CHROMIUM may name one")


@pytest.fixture(scope="module")
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves one model that asks questions."""
    scratch = tmp_path_factory.mktemp("browser")
    put(scratch / "models", "echo", 1, identity())
    (scratch / "models" / "echo" / "model.toml").write_text(MODEL)
    running = Server(scratch / "models", scratch / "server", "--quiet-s", "0")
    running.data = scratch / "server" / "data"  # type: ignore[attr-defined]
    yield running
    running.stop()


@pytest.fixture
def browser(chromium: str, tmp_path: Path) -> Iterator[Browser]:
    """A browser with the screen of a phone."""
    running = Browser(chromium, tmp_path)
    running.set_screen(360, 640)
    yield running
    running.close()


def link(server: Server, name: str, **wish: Any) -> str:
    prediction = server.infer("echo", ROW)["parameters"]["prediction_id"]
    reply = server.json("POST", "/v1/feedback-links", {"prediction_id": prediction, "name": name, **wish})
    return str(reply["url"])


def events(server: Server, name: str) -> list[Event]:
    found: list[Event] = []
    for path in logs.files(server.data / "feedback"):  # type: ignore[attr-defined]
        found += [item[1] for item in logs.read(path) if not isinstance(item, Torn) and item[1].name == name]
    return found


def keep(browser: Browser, name: str) -> None:
    """Leave a picture for people to look at."""
    folder = os.environ.get("HEADGATE_SCREENSHOTS")
    picture = browser.screenshot()
    assert picture.startswith(b"\x89PNG")
    if folder:
        (Path(folder) / f"{name}.png").write_bytes(picture)


def test_a_question_is_answered_and_the_answer_changed_with_the_keyboard_alone(
    server: Server, browser: Browser
) -> None:
    url = link(server, "late")
    browser.open(url)
    assert browser.all("RootWebArea")[0].name == "Was your flight late?"
    assert [node.name for node in browser.all("group")] == ["Was your flight late?"]
    assert [node.name for node in browser.all("button")] == ["Yes", "No"]
    keep(browser, "question")
    browser.press("Tab")
    assert browser.focused() == ("button", "Yes")
    keep(browser, "question-focused")
    browser.press("Tab")
    assert browser.focused() == ("button", "No")
    assert events(server, "late") == []
    browser.submit("Enter")
    assert "Thank you" in browser.text()
    assert [node.name for node in browser.all("status")] or "was kept" in browser.text()
    keep(browser, "thanks")
    browser.press("Tab")
    assert browser.focused() == ("link", "Change my answer")
    browser.submit("Enter")
    browser.press("Tab")
    assert browser.focused() == ("button", "Yes")
    browser.submit(" ")
    assert "Thank you" in browser.text()
    one, two = events(server, "late")
    assert (one.value, two.value) == (False, True)
    assert one.link == two.link
    assert one.received_ns < two.received_ns
    mine = server.url + "/"
    assert browser.requests
    assert all(address.startswith(mine) for address in browser.requests)


def test_a_number_is_typed_and_a_wrong_one_is_not_sent(server: Server, browser: Browser) -> None:
    browser.open(link(server, "stars"))
    (field,) = browser.all("spinbutton")
    assert field.name == "How good was this forecast, from 1 (poor) to 5 (very good)?"
    browser.press("Tab")
    assert browser.focused() == ("spinbutton", field.name)
    browser.press("Enter")
    browser.type("9")
    browser.press("Enter")
    keep(browser, "number")
    assert events(server, "stars") == []
    browser.press("Tab")
    assert browser.focused() == ("button", "Send")
    browser.press("Tab", shift=True)
    # The whole of a number field is selected when the focus comes back by key.
    browser.type("4")
    browser.submit("Enter")
    assert "Thank you" in browser.text()
    assert [event.value for event in events(server, "stars")] == [4]


def test_a_text_is_typed(server: Server, browser: Browser) -> None:
    browser.open(link(server, "comment"))
    browser.press("Tab")
    browser.type("gate changed <twice>")
    browser.press("Tab")
    keep(browser, "text")
    browser.submit("Enter")
    assert "gate changed <twice>" in browser.text()
    assert [event.value for event in events(server, "comment")] == ["gate changed <twice>"]


@pytest.mark.parametrize("dark", [False, True])
def test_long_choices_fit_on_a_small_phone_and_can_be_hit_with_a_finger(
    server: Server, browser: Browser, dark: bool
) -> None:
    browser.set_screen(320, 568, dark=dark)
    browser.open(link(server, "reason"))
    assert browser.content_width() <= 320
    buttons = browser.all("button")
    assert [node.name for node in buttons][:2] == ["Weather", "Late arrival of the aircraft"]
    for button in buttons:
        width, height = browser.size(button)
        # 44 CSS pixels: WCAG 2.2, success criterion 2.5.5.
        assert width >= 44
        assert height >= 44
    keep(browser, "choices-dark" if dark else "choices")


def test_a_bad_link_is_a_page_with_a_heading(server: Server, browser: Browser) -> None:
    browser.open(link(server, "late")[:-1])
    assert [node.name for node in browser.all("heading")] == ["This link is not valid"]
    keep(browser, "bad-link")
