"""Page: what a person sees who follows a feedback link. HTML without scripts and without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from gateway.feedback.links import Link
from gateway.feedback.rules import MAX_INTEGER, FeedbackRule, Value

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #59636e; --mark: #0a58ca; --on: #fff;
  --bad: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --paper: #16181c; --line: #9aa4af; --mark: #8ab4f8; --on: #10141a; --bad: #f2b8b5 }
}
* { box-sizing: border-box }
body { margin: 0; padding: 2rem 1rem; background: var(--paper); color: var(--ink);
  font: 1.125rem/1.5 system-ui, sans-serif }
main { max-width: 34rem; margin: 0 auto }
h1, legend { font-size: 1.5rem; font-weight: 700; line-height: 1.3; margin: 0 0 1rem; padding: 0;
  overflow-wrap: anywhere }
fieldset { border: 0; margin: 0; padding: 0; min-width: 0 }
.choices { display: flex; flex-wrap: wrap; gap: .75rem }
button, .again { min-height: 3rem; min-width: 6rem; padding: .5rem 1.25rem; border: 2px solid var(--mark);
  border-radius: .5rem; background: var(--paper); color: var(--mark); font: inherit; font-weight: 600; cursor: pointer;
  overflow-wrap: anywhere }
button:hover, button:focus-visible, .primary { background: var(--mark); color: var(--on) }
.again { display: inline-block; text-decoration: none }
:focus-visible { outline: 3px solid var(--ink); outline-offset: 3px }
input, textarea, select { width: 100%; min-height: 3rem; padding: .5rem .75rem; border: 2px solid var(--line);
  border-radius: .5rem; background: var(--paper); color: var(--ink); font: inherit; margin: 0 0 1rem }
.bad { color: var(--bad); font-weight: 600 }
.note { color: var(--line); font-size: 1rem; margin: 1.5rem 0 0 }
"""

_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_DIGEST}'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-robots-tag": "noindex, nofollow",
    "cross-origin-opener-policy": "same-origin",
}
"""For every page. The address of a page is a permission: it is kept from caches, from robots and from other sites."""

MANY = 12
"""From so many choices on the page has a list instead of buttons."""


def question(link: Link, rule: FeedbackRule) -> str:
    """What is asked, in the owner's words where there are any."""
    if rule.question:
        return rule.question
    name = link.name.replace("_", " ").replace("-", " ")
    return f"What really happened? ({name})" if rule.kind == "expectation" else f"What do you think? ({name})"


def choices(link: Link, rule: FeedbackRule) -> tuple[Value, ...]:
    """The values to choose from; none where a number or a text is asked for."""
    if link.values:
        return link.values
    return (True, False) if rule.type == "boolean" else rule.values


def label(value: Value) -> str:
    """A value in words."""
    if isinstance(value, bool):
        return "Yes" if value else "No"
    return str(value)


def read_value(text: str, link: Link, rule: FeedbackRule) -> Value | None:
    """The value that a form sent, None where the link does not permit it."""
    options = choices(link, rule)
    if options:
        return next((value for value in options if encode(value) == text), None)
    value: Value = text
    if rule.type == "text":
        value = text.replace("\r\n", "\n")
    else:
        try:
            value = int(text) if rule.type == "integer" else float(text)
        except ValueError:
            return None
        if "_" in text:
            return None
    return value if rule.accepts(value) else None


def encode(value: Value) -> str:
    """A value as a form sends it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def ask(link: Link, rule: FeedbackRule, wrong: str = "", given: str = "") -> str:
    """The page that asks; `wrong` says what was not right about the answer that was `given` before."""
    title = question(link, rule)
    alert = f'<p class="bad" role="alert" id="wrong">{escape(wrong)}</p>' if wrong else ""
    until = datetime.fromtimestamp(link.expires_s, UTC)
    note = f'You can answer, and change your answer, until <time datetime="{until:%Y-%m-%dT%H:%M:%SZ}">'
    note = f'<p class="note">{note}{until.day} {until:%B %Y, %H:%M} UTC</time>.</p>'
    options = choices(link, rule)
    form = _choose(title, options) if options else _write(title, rule, given, bool(wrong))
    return _document(title, f'{alert}<form method="post" autocomplete="off">{form}</form>{note}', bool(wrong))


def wanted(rule: FeedbackRule) -> str:
    """What is to be written, in words for a person."""
    low, high = rule.bounds
    if rule.type == "text":
        return (
            f"Please write at most {high} characters." if low in (0, 1) else f"Please write {low} to {high} characters."
        )
    noun = "a whole number" if rule.type == "integer" else "a number"
    if low is not None and high is not None:
        return f"Please give {noun} from {low} to {high}."
    if low is not None:
        return f"Please give {noun} of at least {low}."
    return f"Please give {noun}" + (f" of at most {high}." if high is not None else ".")


def wrong(link: Link, rule: FeedbackRule) -> str:
    """What is said about an answer that the link does not permit."""
    return "Please choose one of the answers." if choices(link, rule) else f"That did not fit. {wanted(rule)}"


def thank(link: Link, rule: FeedbackRule, value: Value) -> str:
    """The page after an answer."""
    said = escape(label(value))
    body = (
        f'<h1>Thank you</h1><p role="status">Your answer to &ldquo;{escape(question(link, rule))}&rdquo; was kept: '
        f'<strong>{said}</strong>.</p><p><a class="again" href="">Change my answer</a></p>'
    )
    return _document("Thank you", body)


def tell(title: str, text: str) -> str:
    """A page that says why there is no question."""
    return _document(title, f"<h1>{escape(title)}</h1><p>{escape(text)}</p>")


def _choose(title: str, options: Sequence[Value]) -> str:
    if len(options) < MANY:
        buttons = "".join(
            f'<button name="value" value="{escape(encode(value))}">{escape(label(value))}</button>' for value in options
        )
        return f'<fieldset><legend>{escape(title)}</legend><div class="choices">{buttons}</div></fieldset>'
    items = "".join(f'<option value="{escape(encode(value))}">{escape(label(value))}</option>' for value in options)
    select = f'<select name="value" id="value" required><option value="">Choose one</option>{items}</select>'
    return f'<h1><label for="value">{escape(title)}</label></h1>{select}<p><button class="primary">Send</button></p>'


def _write(title: str, rule: FeedbackRule, given: str, is_wrong: bool) -> str:
    low, high = rule.bounds
    told = ' aria-invalid="true" aria-describedby="hint wrong"' if is_wrong else ' aria-describedby="hint"'
    if rule.type == "text":
        bounds = f' minlength="{low}" maxlength="{high}"'
        field = f'<textarea name="value" id="value" rows="5" required{bounds}{told}>{escape(given)}</textarea>'
    else:
        if rule.type == "integer":
            low, high = (-MAX_INTEGER if low is None else low), (MAX_INTEGER if high is None else high)
        limits = "".join(f' {key}="{bound}"' for key, bound in (("min", low), ("max", high)) if bound is not None)
        step = "1" if rule.type == "integer" else "any"
        kind = f'type="number" step="{step}" value="{escape(given)}"'
        field = f'<input name="value" id="value" {kind} required{limits}{told}>'
    hint = f'<p id="hint">{wanted(rule)}</p>'
    heading = f'<h1><label for="value">{escape(title)}</label></h1>'
    return f'{heading}{hint}{field}<p><button class="primary">Send</button></p>'


def _document(title: str, body: str, is_wrong: bool = False) -> str:
    mark = "Please check: " if is_wrong else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{mark}{escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>"
    )
