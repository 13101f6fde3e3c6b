"""The tables of the ledger. What their columns mean is said here; migrations.py makes them.

Times are Unix nanoseconds. `part` is a row of a request; a value is JSON text.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, Table, Text

metadata = MetaData()

migrations = Table(
    "migrations",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("title", Text, nullable=False),
    Column("applied_ns", BigInteger, nullable=False),
)
"""Which migrations this store has had."""

logs = Table(
    "logs",
    metadata,
    Column("name", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("repeats", BigInteger, nullable=False),
    Column("unread", BigInteger, nullable=False),
    Column("damaged", BigInteger, nullable=False),
    Column("torn", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
)
"""Feedback logs. position: byte up to which a log is folded. events, repeats: events taken from it, and those whose
feedback_id was there already. unread, damaged, torn: see logs.Taken, summed up but for torn, and why the last was so
(`reason`). It changes in the transaction that writes the events, so each is folded once."""

events = Table(
    "events",
    metadata,
    Column("feedback_id", Text, primary_key=True),
    Column("op", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("value", Text),
    Column("prediction_id", Text, nullable=False),
    Column("part", Integer),
    Column("address", BigInteger),
    Column("address_text", Text, nullable=False),
    Column("event_time_ns", BigInteger, nullable=False),
    Column("source_type", Text, nullable=False),
    Column("source_id", Text, nullable=False),
    Column("observed_ns", BigInteger, nullable=False),
    Column("received_ns", BigInteger, nullable=False),
    Column("rationale", Text, nullable=False),
    Column("supersedes", Text),
    Column("link", Text, nullable=False),
    Column("idempotency_key", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("version", Integer),
    Column("predicted_ns", BigInteger),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("retry_ns", BigInteger),
    Index("events_subject", "prediction_id", "part", "name"),
    Index("events_address", "address"),
    Index("events_supersedes", "supersedes"),
    Index("events_retry", "retry_ns"),
)
"""Every event (feedback.event.Event) that was ever folded. version, predicted_ns: of its prediction, null until it is
known. address: hash of a request id or entity key, null for one that names its prediction. state: a resolve.State.
retry_ns: when a pending one is looked for again."""

labels = Table(
    "labels",
    metadata,
    Column("prediction_id", Text, primary_key=True),
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("predicted_ns", BigInteger, nullable=False),
    Column("value", Text),
    Column("feedback_id", Text, nullable=False),
    Column("source_type", Text, nullable=False),
    Column("source_id", Text, nullable=False),
    Column("observed_ns", BigInteger, nullable=False),
    Column("received_ns", BigInteger, nullable=False),
    Column("first_ns", BigInteger, nullable=False),
    Column("voices", Integer, nullable=False),
    Column("agreeing", Integer, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Index("labels_changed", "changed"),
)
"""The resolved label of each labelled row: what resolve.settle made of its events. value: null where all that was said
has been withdrawn. first_ns: when the first event with a voice came. changed: the fold that wrote it."""

rules = Table(
    "rules",
    metadata,
    Column("model", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("rule", Text, nullable=False),
    Column("cursor", Text),
)
"""The declarations (feedback.rules.FeedbackRule as JSON) that the labels follow. cursor: prediction up to which labels
were resolved anew after a change, null when all are."""

segments = Table(
    "segments",
    metadata,
    Column("prefix", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("answered", BigInteger, nullable=False),
    Column("indexed", BigInteger, nullable=False),
    Column("sealed", Integer, nullable=False),
)
"""Segments of the journal. rows: how many are counted. answered: those of them with an answer. indexed: rows whose
addresses are in `addresses`. sealed: 1 when all of it is counted and nothing can come."""

volumes = Table(
    "volumes",
    metadata,
    Column("model", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("predictions", BigInteger, nullable=False),
)
"""Answered rows by the hour of Unix time in which they were asked for."""

arrivals = Table(
    "arrivals",
    metadata,
    Column("model", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("lag", Integer, primary_key=True, autoincrement=False),
    Column("labels", BigInteger, nullable=False),
    Column("lag_ms", BigInteger, nullable=False),
)
"""Labelled rows by the hour of their prediction and how long after it their first event came: `lag` is an index into
maturity.LAGS_S, `lag_ms` the sum of milliseconds."""

tallies = Table(
    "tallies",
    metadata,
    Column("model", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("state", Text, primary_key=True),
    Column("events", BigInteger, nullable=False),
)
"""Events by their state."""

addresses = Table(
    "addresses",
    metadata,
    Column("address", BigInteger, primary_key=True, autoincrement=False),
    Column("prediction_id", Text, primary_key=True),
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("predicted_ns", BigInteger, nullable=False),
)
"""Predictions by request id or entity key, for the models in `indexes`. part: -1 for a whole request."""

indexes = Table(
    "indexes",
    metadata,
    Column("model", Text, primary_key=True),
    Column("field", Text, primary_key=True),
)
"""What is kept in `addresses` for a model: entity keys by the name of an input, request ids by an empty name."""

facts = Table(
    "facts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
)
"""Single numbers: `fold` counts transactions that changed labels."""

reviews = Table(
    "reviews",
    metadata,
    Column("review_id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("prediction_id", Text, nullable=False),
    Column("part", Integer, nullable=False),
    Column("why", Text, nullable=False),
    Column("score", Float, nullable=False),
    Column("reviewers", Integer, nullable=False),
    Column("answers", Integer, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Index("reviews_subject", "prediction_id", "part", "name", unique=True),
    Index("reviews_queue", "model", "name", "state", "score"),
)
"""Predictions that people are to look at. why: sampled or low-confidence. score: the lower, the sooner. reviewers: how
many answers are wanted. state: open or done."""

claims = Table(
    "claims",
    metadata,
    Column("review_id", Text, primary_key=True),
    Column("reviewer", Text, primary_key=True),
    Column("lease_ns", BigInteger, nullable=False),
    Column("key", Text, nullable=False),
    Column("value", Text),
    Index("claims_key", "key"),
)
"""Who has taken a review, until when, and the answer: its idempotency key, which nobody else knows, and its value."""
