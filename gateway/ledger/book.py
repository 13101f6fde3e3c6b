"""RuleBook: the declarations that labels follow, kept in the ledger so that they outlive the model's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, select

from gateway.errors import NotReady
from gateway.feedback.rules import FeedbackRule
from gateway.ledger.dialect import upsert
from gateway.ledger.tables import rules

Declared = Callable[[str], Mapping[str, FeedbackRule]]
"""The feedback names that a model declares now, as feedback.declarations.Declarations.of. May raise NotReady."""

UNDECLARED = FeedbackRule(type="text")
"""What holds for a name that was never declared while its labels came: the defaults."""


class Restating(NamedTuple):
    """A rule that was changed, and the prediction up to which its labels were resolved anew."""

    model: str
    name: str
    cursor: str


class RuleBook:
    """Rules by (model, name). One thread uses it, inside the transactions of the fold."""

    def __init__(self, declared: Declared) -> None:
        self._declared = declared
        self._rules: dict[tuple[str, str], FeedbackRule] = {}

    def load(self, connection: Connection) -> None:
        """Begin anew with what the ledger holds: after a start, and after a transaction that was rolled back."""
        found = connection.execute(select(rules.c.model, rules.c.name, rules.c.rule)).all()
        self._rules = {(row.model, row.name): msgspec.json.decode(row.rule, type=FeedbackRule) for row in found}

    def of(self, connection: Connection, model: str, name: str) -> FeedbackRule:
        """The rule in force. A name that is met for the first time is written down."""
        rule = self._rules.get((model, name))
        if rule is None:
            rule = self._now(model, name) or UNDECLARED
            self._write(connection, model, name, rule, None)
        return rule

    def of_model(self, model: str) -> dict[str, FeedbackRule]:
        """What a model declares now, or what was declared when its files could last be read."""
        try:
            now = dict(self._declared(model))
        except NotReady:
            now = {}
        return now or {name: rule for (each, name), rule in self._rules.items() if each == model}

    def refresh(self, connection: Connection) -> list[tuple[str, str]]:
        """Take over declarations that were changed; their labels are to be resolved anew. Returns which."""
        changed = []
        for (model, name), rule in list(self._rules.items()):
            now = self._now(model, name)
            if now is not None and now != rule:
                self._write(connection, model, name, now, "")
                changed.append((model, name))
        return changed

    def _now(self, model: str, name: str) -> FeedbackRule | None:
        try:
            return self._declared(model).get(name)
        except NotReady:
            return None

    def _write(self, connection: Connection, model: str, name: str, rule: FeedbackRule, cursor: str | None) -> None:
        self._rules[model, name] = rule
        row = {"model": model, "name": name, "rule": msgspec.json.encode(rule).decode(), "cursor": cursor}
        upsert(connection, rules, [row])


def restating(connection: Connection) -> Restating | None:
    """A rule some of whose labels still follow its former declaration; None if none is left."""
    statement = select(rules.c.model, rules.c.name, rules.c.cursor).where(rules.c.cursor.is_not(None)).limit(1)
    found = connection.execute(statement).first()
    return None if found is None else Restating(*found)
