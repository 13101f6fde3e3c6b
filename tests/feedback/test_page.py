"""The page behind a link: what it asks and records, and that it is inert, escaped and understood by a person."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.feedback import page
from gateway.feedback.links import Link
from gateway.feedback.rules import FeedbackRule, problem
from tests.feedback.app import DAY_NS, Desk, Reply

VOID = {"meta", "input", "link", "br", "img", "hr"}


class Document(HTMLParser):
    """A page as elements (tag, attributes, text); unbalanced tags are an error."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(body.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """See HTMLParser."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """See HTMLParser."""
        if self.open[-1:] != ["style"]:
            self.text += data + " "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of a tag."""
        return [attributes for each, attributes in self.elements if each == tag]


def path_of(desk: Desk, name: str = "late", **wish: Any) -> str:
    document = {"prediction_id": desk.predictions.add(), "name": name, **wish}
    reply = asyncio.run(desk.request("POST", "/v1/feedback-links", document))
    assert reply.status == 201, reply.body
    return str(reply.json["url"]).removeprefix("http://models.test")


def get(desk: Desk, path: str) -> Reply:
    return asyncio.run(desk.request("GET", path))


def answer(desk: Desk, path: str, **form: str) -> Reply:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    return asyncio.run(desk.request("POST", path, urlencode(form).encode(), headers))


def check_page(reply: Reply, status: int) -> Document:
    """What holds for every page; returns it."""
    assert reply.status == status
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert "noindex" in reply.headers["x-robots-tag"]
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["form-action"] == "'self'"
    style = re.search(rb"<style>(.*?)</style>", reply.body, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1]).digest()).decode()
    assert policy["style-src"] == f"'sha256-{digest}'"
    document = Document(reply.body)
    assert {tag for tag, _ in document.elements}.isdisjoint({"script", "img", "link", "iframe", "object", "base"})
    for _, attributes in document.elements:
        assert attributes.keys().isdisjoint({"style", "src", "action"})
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href") in (None, "")
    assert document.all("html") == [{"lang": "en"}]
    assert document.all("title")
    # Every field has a label, and every reference within the page has its target.
    targets = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    labelled = {attributes["for"] for attributes in document.all("label")}
    for tag in ("input", "select", "textarea"):
        assert {attributes["id"] for attributes in document.all(tag)} <= labelled
    for _, attributes in document.elements:
        for reference in (attributes.get("aria-describedby") or "").split():
            assert reference in targets
    return document


def test_looking_at_a_link_changes_nothing(desk: Desk) -> None:
    path = path_of(desk)
    for method in ("GET", "HEAD", "GET"):
        reply = asyncio.run(desk.request(method, path))
        assert reply.status == 200
    assert desk.events() == []
    assert desk.counted() == {}


def test_a_yes_or_no_question_has_two_buttons_and_no_script(desk: Desk) -> None:
    document = check_page(get(desk, path_of(desk)), 200)
    assert "Was your flight late?" in document.text
    assert document.all("form") == [{"method": "post", "autocomplete": "off"}]
    assert document.all("button") == [{"name": "value", "value": "true"}, {"name": "value", "value": "false"}]
    assert "until" in document.text
    assert "28 September 2026, 14:13 UTC" in document.text


def test_an_answer_is_kept_as_that_of_a_person(desk: Desk) -> None:
    path = path_of(desk, source="pax-17")
    document = check_page(answer(desk, path, value="true"), 200)
    assert "Yes" in document.text
    (event,) = desk.events()
    assert (event.value, event.name, event.model, event.kind, event.op) == (
        True,
        "late",
        "flights",
        "expectation",
        "put",
    )
    assert (event.source.type, event.source.id) == ("HUMAN", "pax-17")
    assert event.prediction_id in desk.predictions.known
    assert event.status == "matched"
    assert desk.counted() == {("flights", "late", "matched"): 1}


def test_a_second_answer_through_the_same_link_is_a_later_event_of_it(desk: Desk) -> None:
    path, other = path_of(desk), path_of(desk)
    for where, value in ((path, "true"), (path, "false"), (other, "true")):
        assert answer(desk, where, value=value).status == 200
    one, two, three = desk.events()
    assert one.link == two.link != three.link
    assert one.received_ns < two.received_ns
    assert (one.value, two.value) == (True, False)
    assert one.source == two.source != three.source
    assert one.feedback_id != two.feedback_id


def test_an_answer_after_the_join_window_is_late(desk: Desk) -> None:
    path = path_of(desk, expires_in="60d")
    desk.now_ns += 31 * DAY_NS
    assert answer(desk, path, value="true").status == 200
    assert desk.events()[0].status == "late"


def test_what_a_category_is_called_is_escaped_and_sent_back_whole(desk: Desk) -> None:
    path = path_of(desk, "reason")
    document = check_page(get(desk, path), 200)
    values = [str(button["value"]) for button in document.all("button")]
    assert values == ["weather", "crew", "7", '<b>&"strange"</b>']
    assert document.all("b") == []
    for value in values:
        assert '<b>&"strange"' not in answer(desk, path, value=value).body.decode()
    assert [event.value for event in desk.events()] == ["weather", "crew", 7, '<b>&"strange"</b>']


def test_a_link_may_offer_fewer_values_than_the_declaration(desk: Desk) -> None:
    path = path_of(desk, "reason", values=["crew", 7])
    assert [button["value"] for button in check_page(get(desk, path), 200).all("button")] == ["crew", "7"]
    document = check_page(answer(desk, path, value="weather"), 422)
    assert "Please choose one of the answers." in document.text
    assert desk.events() == []


def test_many_categories_become_a_list(desk: Desk) -> None:
    desk.declare("flights", f"[feedback.airport]\ntype = 'category'\nvalues = {[f'A{n}' for n in range(40)]}")
    path = path_of(desk, "airport")
    document = check_page(get(desk, path), 200)
    assert len(document.all("select")) == 1
    assert [option["value"] for option in document.all("option")] == ["", *(f"A{n}" for n in range(40))]
    assert answer(desk, path, value="A39").status == 200
    assert answer(desk, path, value="").status == 422


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("stars", "5", 5),
        ("delay", "-12.5", -12.5),
        ("delay", "1e2", 100.0),
        ("comment", "thank you", "thank you"),
        ("comment", "a\r\nb", "a\nb"),
        ("comment", "<script>alert(1)</script>", "<script>alert(1)</script>"),
    ],
)
def test_numbers_and_texts_are_written(desk: Desk, name: str, given: str, value: object) -> None:
    path = path_of(desk, name)
    check_page(get(desk, path), 200)
    document = check_page(answer(desk, path, value=given), 200)
    assert document.all("script") == []
    (event,) = desk.events()
    assert event.value == value
    assert type(event.value) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("stars", "6", "a whole number from 1 to 5"),
        ("stars", "4.5", "a whole number from 1 to 5"),
        ("stars", "1_0", "a whole number from 1 to 5"),
        ("stars", "", "a whole number from 1 to 5"),
        ("stars", "9" * 5000, "a whole number from 1 to 5"),
        ("delay", "nan", "a number of at least -60"),
        ("delay", "inf", "a number of at least -60"),
        ("delay", "much", "a number of at least -60"),
        ("comment", "", "write at most 200 characters"),
        ("comment", "x" * 201, "write at most 200 characters"),
        ("late", "yes", "Please choose one of the answers."),
    ],
)
def test_a_wrong_answer_is_asked_again_with_what_is_wanted(desk: Desk, name: str, given: str, words: str) -> None:
    document = check_page(answer(desk, path_of(desk, name), value=given), 422)
    assert words in document.text
    assert any(attributes.get("role") == "alert" for _, attributes in document.elements)
    assert len(document.all("form")) == 1
    for field in document.all("input"):
        assert field["value"] == given
    assert desk.events() == []


@pytest.mark.parametrize("body", [b"", b"other=1", b"value=true&value=false", b"\xff\xfe", b"&" * 100 + b"value=true"])
def test_a_form_that_is_not_ours_changes_nothing(desk: Desk, body: bytes) -> None:
    reply = asyncio.run(desk.request("POST", path_of(desk), body))
    assert reply.status in (400, 422)
    check_page(reply, reply.status)
    assert desk.events() == []


def test_a_form_over_the_limit_gets_a_page(desk: Desk) -> None:
    document = check_page(answer(desk, path_of(desk, "comment"), value="x" * (64 << 10)), 413)
    assert "too long" in document.text


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("token", ["x", "a.b.c", "a" * 5000, "%00", "ä"])
def test_a_bad_link_gets_a_page_that_a_person_understands(desk: Desk, method: str, token: str) -> None:
    document = check_page(asyncio.run(desk.request(method, f"/f/{token}")), 403)
    assert "This link is not valid" in document.text
    assert document.all("form") == []


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_expired_link_gets_a_page_that_a_person_understands(desk: Desk, method: str) -> None:
    path = path_of(desk, expires_in=60)
    desk.now_ns += 60 * 10**9
    document = check_page(asyncio.run(desk.request(method, path, b"value=true")), 410)
    assert "This link has ended" in document.text
    assert desk.events() == []


@pytest.mark.parametrize("change", ["", "[feedback.late]\ntype = 'text'"])
def test_a_question_that_is_not_asked_any_more_gets_a_page(
    desk: Desk, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.feedback.declarations.REFRESH_S", 0.0)
    path = path_of(desk, values=[True, False])
    desk.declare("flights", change)
    assert "This link has ended" in check_page(get(desk, path), 410).text


def test_keys_that_cannot_be_read_get_a_page(desk: Desk) -> None:
    path = path_of(desk)
    (desk.folder / "link-keys.json").write_text("damaged")
    document = check_page(get(desk, path), 503)
    assert "does not work right now" in document.text
    assert "link-keys" not in document.text


def test_a_disk_that_fails_gets_a_page_that_says_that_nothing_was_kept(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = path_of(desk)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.journal.frames.FrameFile.sync", fail)
    reply = answer(desk, path, value="true")
    assert "was not kept" in check_page(reply, 503).text
    assert int(reply.headers["retry-after"]) > 0


def test_the_access_log_does_not_hold_the_permission(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(tmp_path, access_log=True)
    path = path_of(desk)
    with caplog.at_level("INFO", "headgate.access"):
        get(desk, path)
        answer(desk, path, value="true")
    lines = [record for record in caplog.records if record.name == "headgate.access"]
    assert [getattr(line, "path", "") for line in lines[-2:]] == ["/f/{token}"] * 2
    assert path.removeprefix("/f/") not in json.dumps([vars(line) for line in lines], default=str)
    desk.feedback.close()


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    digits = colour.lstrip("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_text_has_contrast(scheme: int) -> None:
    """At least 4.5 : 1 (WCAG 2.2, success criterion 1.4.3), in light and in dark colours."""
    colours = dict(
        re.findall(r"--([a-z]+): (#[0-9a-f]{3,6})", re.findall(r":root \{(.*?)\}", page.STYLE, re.DOTALL)[scheme])
    )
    for front, back in (("ink", "paper"), ("mark", "paper"), ("on", "mark"), ("line", "paper"), ("bad", "paper")):
        high, low = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)


RULES = st.one_of(
    st.builds(FeedbackRule, type=st.just("boolean"), question=st.text(max_size=40)),
    st.builds(FeedbackRule, type=st.just("text"), question=st.text(max_size=40)),
    st.builds(
        FeedbackRule,
        type=st.just("category"),
        values=st.lists(
            st.one_of(st.text(min_size=1, max_size=9), st.integers(-9, 9)), min_size=1, max_size=20, unique=True
        ).map(tuple),
    ),
)


@given(RULES)
def test_every_page_is_whole_whatever_words_it_holds(rule: FeedbackRule) -> None:
    link = Link("l", "m", "p", None, "a_name", (), 1_790_000_000)
    document = Document(page.ask(link, rule).encode(errors="replace"))
    assert len(document.all("form")) == 1
    options = page.choices(link, rule)
    sent = [each.get("value") or "" for each in document.all("button") + document.all("option")]
    for value in options:
        shown = page.encode(value)
        if shown.isprintable():
            assert shown in sent
        Document(page.thank(link, rule, value).encode(errors="replace"))


@given(st.lists(st.one_of(st.text(min_size=1, max_size=3), st.integers(0, 9)), min_size=1, max_size=9, unique_by=str))
def test_every_button_says_what_it_means(values: list[str | int]) -> None:
    rule = FeedbackRule("category", values=tuple(values))
    assert problem("n", rule) is None
    link = Link("l", "m", "p", None, "n", (), 1)
    for value in values:
        found = page.read_value(page.encode(value), link, rule)
        assert found == value
        assert type(found) is type(value)
