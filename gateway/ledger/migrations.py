"""Migrations: the steps by which a store gets the tables of tables.py, numbered and never changed once released.

They are written here and not in a tool's scripts: the SQL is plain enough for SQLite and PostgreSQL alike, each step is
one transaction on both, and a server must bring its store up to date by itself, without a second command. A test
compares what they make with tables.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, inspect, select, text

from gateway.errors import ServerError
from gateway.ledger.tables import migrations


class Migration(NamedTuple):
    """One step: a title for people, and statements that SQLite and PostgreSQL both take."""

    title: str
    statements: tuple[str, ...]


class LedgerTooNew(ServerError):
    """A later release wrote this ledger."""


MIGRATIONS = (
    Migration(
        "feedback, labels and reviews",
        (
            """CREATE TABLE logs (
                name TEXT PRIMARY KEY NOT NULL, position BIGINT NOT NULL, events BIGINT NOT NULL,
                repeats BIGINT NOT NULL, unread BIGINT NOT NULL, damaged BIGINT NOT NULL,
                torn BIGINT NOT NULL, reason TEXT NOT NULL)""",
            """CREATE TABLE events (
                feedback_id TEXT PRIMARY KEY NOT NULL, op TEXT NOT NULL, model TEXT NOT NULL, name TEXT NOT NULL,
                kind TEXT NOT NULL, value TEXT, prediction_id TEXT NOT NULL, part INTEGER, address BIGINT,
                address_text TEXT NOT NULL, event_time_ns BIGINT NOT NULL, source_type TEXT NOT NULL,
                source_id TEXT NOT NULL, observed_ns BIGINT NOT NULL, received_ns BIGINT NOT NULL,
                rationale TEXT NOT NULL, supersedes TEXT, link TEXT NOT NULL, idempotency_key TEXT NOT NULL,
                actor TEXT NOT NULL, version INTEGER, predicted_ns BIGINT, state TEXT NOT NULL, reason TEXT NOT NULL,
                tries INTEGER NOT NULL, retry_ns BIGINT)""",
            "CREATE INDEX events_subject ON events (prediction_id, part, name)",
            "CREATE INDEX events_address ON events (address)",
            "CREATE INDEX events_supersedes ON events (supersedes)",
            "CREATE INDEX events_retry ON events (retry_ns)",
            """CREATE TABLE labels (
                prediction_id TEXT NOT NULL, part INTEGER NOT NULL, name TEXT NOT NULL, model TEXT NOT NULL,
                version INTEGER NOT NULL, predicted_ns BIGINT NOT NULL, value TEXT, feedback_id TEXT NOT NULL,
                source_type TEXT NOT NULL, source_id TEXT NOT NULL, observed_ns BIGINT NOT NULL,
                received_ns BIGINT NOT NULL, first_ns BIGINT NOT NULL, voices INTEGER NOT NULL,
                agreeing INTEGER NOT NULL, changed BIGINT NOT NULL, PRIMARY KEY (prediction_id, part, name))""",
            "CREATE INDEX labels_changed ON labels (changed)",
            """CREATE TABLE rules (
                model TEXT NOT NULL, name TEXT NOT NULL, rule TEXT NOT NULL, cursor TEXT, PRIMARY KEY (model, name))""",
            """CREATE TABLE segments (
                prefix TEXT PRIMARY KEY NOT NULL, model TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL,
                created_ns BIGINT NOT NULL, rows BIGINT NOT NULL, answered BIGINT NOT NULL, indexed BIGINT NOT NULL,
                sealed INTEGER NOT NULL)""",
            """CREATE TABLE volumes (
                model TEXT NOT NULL, version INTEGER NOT NULL, hour INTEGER NOT NULL, predictions BIGINT NOT NULL,
                PRIMARY KEY (model, version, hour))""",
            """CREATE TABLE arrivals (
                model TEXT NOT NULL, version INTEGER NOT NULL, name TEXT NOT NULL, hour INTEGER NOT NULL,
                lag INTEGER NOT NULL, labels BIGINT NOT NULL, lag_ms BIGINT NOT NULL,
                PRIMARY KEY (model, version, name, hour, lag))""",
            """CREATE TABLE tallies (
                model TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, events BIGINT NOT NULL,
                PRIMARY KEY (model, name, state))""",
            """CREATE TABLE addresses (
                address BIGINT NOT NULL, prediction_id TEXT NOT NULL, part INTEGER NOT NULL,
                predicted_ns BIGINT NOT NULL, PRIMARY KEY (address, prediction_id, part))""",
            "CREATE TABLE indexes (model TEXT NOT NULL, field TEXT NOT NULL, PRIMARY KEY (model, field))",
            "CREATE TABLE facts (name TEXT PRIMARY KEY NOT NULL, number BIGINT NOT NULL)",
            """CREATE TABLE reviews (
                review_id TEXT PRIMARY KEY NOT NULL, model TEXT NOT NULL, version INTEGER NOT NULL, name TEXT NOT NULL,
                prediction_id TEXT NOT NULL, part INTEGER NOT NULL, why TEXT NOT NULL, score FLOAT NOT NULL,
                reviewers INTEGER NOT NULL, answers INTEGER NOT NULL, created_ns BIGINT NOT NULL,
                state TEXT NOT NULL)""",
            "CREATE UNIQUE INDEX reviews_subject ON reviews (prediction_id, part, name)",
            "CREATE INDEX reviews_queue ON reviews (model, name, state, score)",
            """CREATE TABLE claims (
                review_id TEXT NOT NULL, reviewer TEXT NOT NULL, lease_ns BIGINT NOT NULL, key TEXT NOT NULL,
                value TEXT, PRIMARY KEY (review_id, reviewer))""",
            "CREATE INDEX claims_key ON claims (key)",
        ),
    ),
)


def migrate(connection: Connection, now_ns: int, steps: Sequence[Migration] = MIGRATIONS) -> int:
    """Bring a store up to date, a transaction for each step; returns how many were missing. Raises LedgerTooNew."""
    with connection.begin():
        if not inspect(connection).has_table(migrations.name):
            migrations.create(connection)
        done: int = len(connection.execute(select(migrations.c.number)).all())
    if done > len(steps):
        raise LedgerTooNew(f"the ledger has {done} migrations, this release knows {len(steps)}: a later one wrote it")
    for number, step in enumerate(steps[done:], start=done + 1):
        with connection.begin():
            for statement in step.statements:
                connection.execute(text(statement))
            connection.execute(migrations.insert().values(number=number, title=step.title, applied_ns=now_ns))
    return len(steps) - done
