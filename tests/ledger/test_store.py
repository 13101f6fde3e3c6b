"""The databases: SQLite as it is opened, the migrations, and PostgreSQL by the same code."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateTable

from gateway.ledger import dialect, migrations, tables
from gateway.ledger.dialect import LedgerBusy, has_wal_reset_bug, sqlite_advice
from gateway.ledger.migrations import MIGRATIONS, LedgerTooNew, Migration, migrate
from gateway.ledger.reading import Ledger, LedgerUnavailable
from gateway.ledger.service import Writer
from tests.ledger.rig import DAY, START, Declared, HandClock, Rig, open_segment, write


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of this machine for these tests alone; skips where there is none."""
    pytest.importorskip("psycopg")
    programs = [shutil.which(name) for name in ("initdb", "postgres")]
    if None in programs:
        pytest.skip("PostgreSQL is not installed here: initdb and postgres are not on the path")
    initdb, server = map(str, programs)
    user = "postgres" if os.geteuid() == 0 else ""
    # The path of its socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="hg-pg-"))
    if user:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options: dict[str, object] = {"user": user} if user else {}
    data = str(folder / "data")
    made = subprocess.run(
        [initdb, "-D", data, "-U", "headgate", "-A", "trust", "-N", "--locale=C", "-E", "UTF8"],
        *(), cwd=folder, capture_output=True, text=True, check=False, timeout=60, **options,  # type: ignore[call-overload]
    )  # fmt: skip
    if made.returncode:
        shutil.rmtree(folder)
        pytest.skip(f"initdb does not work here: {made.stderr[-200:]}")
    command = [server, "-D", data, "-k", str(folder), "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-F"]
    running = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    url = f"postgresql+psycopg://headgate@127.0.0.1:{port}/"
    try:
        _wait(url + "postgres", running)
        yield url
    finally:
        running.terminate()
        running.wait(30)
        shutil.rmtree(folder)


def _wait(url: str, running: subprocess.Popen[bytes]) -> None:
    engine = create_engine(url, poolclass=NullPool)
    for _ in range(600):
        assert running.poll() is None, "PostgreSQL ended"
        try:
            engine.connect().close()
        except Exception:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("PostgreSQL did not answer within 30 s")


def _database(url: str, name: str) -> str:
    with create_engine(url + "postgres", poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return url + name


def shape(connection: Connection) -> dict[str, tuple[object, ...]]:
    """Columns, their types and whether they may be null, keys and indexes of all tables."""
    with connection.begin():
        found = inspect(connection)
        return {
            name: (
                sorted((each["name"], str(each["type"]), each["nullable"]) for each in found.get_columns(name)),
                found.get_pk_constraint(name)["constrained_columns"],
                sorted((each["name"], str(each["column_names"]), each["unique"]) for each in found.get_indexes(name)),
            )
            for name in found.get_table_names()
        }


def test_the_migrations_make_the_tables_that_the_code_speaks_of() -> None:
    one, other = create_engine("sqlite://").connect(), create_engine("sqlite://").connect()
    assert migrate(one, 1) == len(MIGRATIONS)
    with other.begin():
        tables.metadata.create_all(other)
    assert shape(one) == shape(other)
    assert migrate(one, 2) == 0
    one.close()
    other.close()


def test_every_table_can_be_made_on_postgresql() -> None:
    for table in tables.metadata.sorted_tables:
        assert str(CreateTable(table).compile(dialect=postgresql.dialect()))


MORE = Migration("a note", ("ALTER TABLE reviews ADD COLUMN note TEXT", "CREATE TABLE notes (id TEXT PRIMARY KEY)"))
WRONG = Migration("half", ("CREATE TABLE half (id TEXT PRIMARY KEY)", "ALTER TABLE nowhere ADD COLUMN x TEXT"))


def test_an_older_ledger_is_brought_up_to_date_with_what_it_holds(rig: Rig) -> None:
    said = rig.put(True, prediction_id=write(open_segment(rig.data), START - DAY))
    rig.step()
    assert migrate(rig.writer.connection, START, (*MIGRATIONS, MORE)) == 1
    assert rig.states() == {said: "matched"}
    with rig.writer.connection.begin():
        assert {"notes", "reviews"} <= set(inspect(rig.writer.connection).get_table_names())


def test_a_migration_that_fails_leaves_nothing_behind(rig: Rig) -> None:
    with pytest.raises(Exception, match="nowhere"):
        migrate(rig.writer.connection, START, (*MIGRATIONS, WRONG))
    with rig.writer.connection.begin():
        assert not inspect(rig.writer.connection).has_table("half")
    assert migrate(rig.writer.connection, START, MIGRATIONS) == 0


def test_a_ledger_of_a_later_release_is_not_touched(rig: Rig) -> None:
    migrate(rig.writer.connection, START, (*MIGRATIONS, MORE))
    with pytest.raises(LedgerTooNew, match="has 2 migrations, this release knows 1"):
        rig.reopen()
    rig.writer = Writer(f"sqlite:///{rig.data / 'other.sqlite'}", rig.data, rig.declared, rig.clock)


def test_sqlite_is_opened_so_that_a_commit_survives_the_power(rig: Rig) -> None:
    def pragma(name: str) -> object:
        with rig.writer.connection.begin():
            return rig.writer.connection.exec_driver_sql(f"PRAGMA {name}").scalar()

    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 2
    assert pragma("mmap_size") in (0, None)
    assert pragma("cache_size") == -dialect.CACHE_KIB
    assert (rig.data / dialect.FILE).stat().st_mode & 0o777 == 0o640


def test_a_reader_cannot_write(rig: Rig) -> None:
    with (
        pytest.raises(Exception, match="readonly"),
        dialect.reader(rig.url).connect() as connection,
        connection.begin(),
    ):
        connection.execute(tables.facts.insert().values(name="x", number=1))


def test_readers_do_not_wait_for_the_writer_nor_it_for_them(rig: Rig) -> None:
    prediction = write(open_segment(rig.data), START - DAY)
    rig.put(True, prediction_id=prediction)
    rig.step()
    with rig.writer.connection.begin():
        rig.writer.connection.execute(tables.labels.delete())
        assert len(rig.ledger.prediction(prediction)["labels"]) == 1
    reading = rig.ledger.labels("flights", "late")
    assert next(reading, None) is None
    with dialect.reader(rig.url).connect() as other, other.begin():
        other.execute(text("SELECT count(*) FROM events"))
        rig.put(False, prediction_id=prediction, source="crew")
        rig.step()
    assert len(rig.states()) == 2


@pytest.mark.parametrize(
    ("version", "broken"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((4, 0, 0), False),
    ],
)
def test_the_releases_with_the_wal_reset_bug_are_known(version: tuple[int, ...], broken: bool) -> None:
    assert has_wal_reset_bug(version) is broken
    status, found, advice = sqlite_advice(version)
    assert (status, bool(advice)) == (("warn", True) if broken else ("ok", False))
    assert ".".join(map(str, version)) in found


def test_a_ledger_that_is_not_there_is_said_to_be_unavailable(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="the ledger cannot be read now: it is not there"):
        Ledger(dialect.location(tmp_path)).tallies()
    sqlite3.connect(tmp_path / dialect.FILE).close()
    with pytest.raises(LedgerUnavailable):
        Ledger(dialect.location(tmp_path)).tallies()


def test_postgresql_holds_the_same_ledger(postgres: str, tmp_path: Path) -> None:
    """1. The same logs and segments are folded into SQLite and into PostgreSQL. Result: the same events and labels."""
    url = _database(postgres, "one")
    rig = Rig(tmp_path / "data", url)
    try:
        segment = open_segment(rig.data)
        made = [write(segment, START - DAY, request_id=f"order-{number}") for number in range(3)]
        rig.put(True, prediction_id=made[0])
        rig.put(False, prediction_id=made[0], source="crew")
        rig.delete(rig.put(True, prediction_id=made[1]))
        rig.put(True, request_id="order-2")
        rig.put(True, prediction_id="01a2b3c4-d5e6-8fff-8abc-123400000000")
        rig.step()
        rig.clock.sleep(3)
        rig.step()
        with pytest.raises(LedgerBusy):
            Writer(url, rig.data, Declared(), HandClock())
        plain = f"sqlite:///{tmp_path / 'plain.sqlite'}"
        other = Writer(plain, rig.data, Declared(), rig.clock)
        while other.step():
            pass
        rig.clock.sleep(3)
        while other.step() + rig.step():
            pass
        other.close()
        theirs, ours = Ledger(url), Ledger(plain)
        for prediction in made:
            assert theirs.prediction(prediction) == ours.prediction(prediction)
        assert theirs.tallies() == ours.tallies()
        assert theirs.lags() == ours.lags()
        now_ns = START + 9 * DAY
        assert theirs.maturity("flights", 1, "late", now_ns) == ours.maturity("flights", 1, "late", now_ns)
        assert list(theirs.labels("flights", "late")) == list(ours.labels("flights", "late"))
        assert theirs.changes(0)[0]
        with dialect.reader(url).connect() as connection, pytest.raises(Exception, match="read-only"):
            connection.execute(tables.facts.insert().values(name="x", number=1))
        migrations.migrate(rig.writer.connection, START)
        rig.reopen()
    finally:
        rig.close()
