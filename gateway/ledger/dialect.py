"""Dialect: all that differs between the databases that can hold the ledger. Everything else is portable SQL.

SQLite: one connection writes, in WAL mode with ``synchronous=FULL``, so that a commit that returned survives the power;
readers only read. The bug by which SQLite before 3.51.3 can lose a write-ahead log that two connections write or
checkpoint at once cannot happen so: no second connection does either.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy import ColumnElement, Connection, Engine, Table, create_engine, event, text
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.pool import NullPool

from gateway.errors import NotReady

FILE = "ledger.sqlite"
"""The ledger in the data folder."""

LOCK_WAIT_S = 10.0
"""How long the writer waits where something else, such as a backup, holds the file."""

READ_WAIT_S = 0.25
"""How long a reader waits; then it says that the ledger is locked."""

CACHE_KIB = 16 << 10
WAL_LIMIT_BYTES = 64 << 20
"""What a write-ahead log that had grown is cut back to."""

ADVISORY_LOCK = 0x6865616467617465
"""The key of PostgreSQL's lock that makes a process the one writer."""

_FIXED_IN = (3, 51, 3)
_BROKEN_SINCE = (3, 7, 0)


class LedgerBusy(NotReady):
    """Another process writes this ledger."""


def location(data: Path) -> str:
    """The URL of the ledger of a data folder."""
    return f"sqlite:///{data / FILE}"


def writer(url: str) -> Engine:
    """An engine for the one process that writes."""
    if not url.startswith("sqlite:///"):
        return create_engine(url, poolclass=NullPool)
    path = Path(url.removeprefix("sqlite:///"))
    engine = create_engine("sqlite://", poolclass=NullPool, creator=lambda: _connect_writer(path))
    # The driver's own transactions would let DDL through; ours take the lock for writing at once.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def reader(url: str) -> Engine:
    """An engine that cannot change anything and gives up soon where the ledger is locked."""
    if not url.startswith("sqlite:///"):
        engine = create_engine(url, poolclass=NullPool, execution_options={"postgresql_readonly": True})
        return engine.execution_options(isolation_level="REPEATABLE READ")
    path = Path(url.removeprefix("sqlite:///"))
    engine = create_engine("sqlite://", poolclass=NullPool, creator=lambda: _connect_reader(path))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _connect_writer(path: Path) -> sqlite3.Connection:
    created = not path.exists()
    connection = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        if created:
            os.chmod(path, 0o640)
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "mmap_size=0",
            f"cache_size=-{CACHE_KIB}",
            f"journal_size_limit={WAL_LIMIT_BYTES}",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_reader(path: Path) -> sqlite3.Connection:
    uri = f"file:{quote(str(path))}?mode=ro"
    connection = sqlite3.connect(uri, timeout=READ_WAIT_S, uri=True, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only=1")
    return connection


class WriterLock:
    """Held by the one process that writes a ledger, until `release` or the end of the process."""

    def __init__(self, url: str, connection: Connection) -> None:
        """Take it. Raises LedgerBusy where another process has it."""
        self._descriptor = -1
        if connection.dialect.name == "sqlite":
            path = url.removeprefix("sqlite:///") + ".lock"
            self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.release()
                raise LedgerBusy("another process writes this ledger") from None
            return
        # It belongs to the session: it goes with the connection.
        with connection.begin():
            taken = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_LOCK}).scalar()
        if not taken:
            raise LedgerBusy("another process writes this ledger")

    def release(self) -> None:
        """Let another process write."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _insert(connection: Connection) -> Callable[[Table], Any]:
    """The `insert` of the dialect. That of PostgreSQL is a quarter of what SQLAlchemy takes to be imported."""
    if connection.dialect.name == "sqlite":
        return sqlite_insert
    from sqlalchemy.dialects.postgresql import insert

    return insert


def upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    add: Sequence[str] = (),
) -> None:
    """Insert rows, or change those whose primary key is there: columns in `add` are added to, others replaced."""
    if not rows:
        return
    statement = _insert(connection)(table)
    keys = [column.name for column in table.primary_key]
    changed: dict[str, ColumnElement[Any]] = {
        name: table.c[name] + statement.excluded[name] if name in add else statement.excluded[name]
        for name in rows[0]
        if name not in keys
    }
    if changed:
        statement = statement.on_conflict_do_update(index_elements=keys, set_=changed)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=keys)
    connection.execute(statement, rows)


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """True for releases of SQLite whose write-ahead log two connections could ruin."""
    return _BROKEN_SINCE <= version < _FIXED_IN


def sqlite_advice(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> tuple[Literal["ok", "warn"], str, str]:
    """(status, what was found, advice) about the SQLite that Python brings, for `headgate doctor`."""
    found = f"SQLite {'.'.join(map(str, version))}"
    if not has_wal_reset_bug(version):
        return "ok", found, ""
    return (
        "warn",
        f"{found} has the WAL-reset bug; Headgate writes by one connection alone, which it does not touch",
        f"do not open {FILE} for writing with any other program while the server runs; 3.51.3 has the fix",
    )
