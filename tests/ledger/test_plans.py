"""How SQLite finds what the ledger asks it for: a step must not take longer because the ledger has grown."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import event

from tests.ledger.rig import DAY, START, Rig, open_segment, write


def test_no_step_reads_all_events_or_all_labels(rig: Rig) -> None:
    engine = rig.writer.connection.engine
    seen: dict[str, Any] = {}

    def note(connection: Any, cursor: Any, statement: str, values: Any, context: Any, executemany: bool) -> None:
        seen.setdefault(statement, values[0] if executemany else values)

    event.listen(engine, "before_cursor_execute", note)
    segment = open_segment(rig.data)
    predictions = [write(segment, START - DAY) for _ in range(3)]
    # Joined, said twice, in conflict, too early, without a prediction, by the client's own name, withdrawn.
    said = []
    for value in (True, True, False):
        rig.clock.sleep(1)
        said += [rig.put(value, prediction_id=each) for each in predictions]
    rig.put(True, prediction_id=f"{segment.spec.prefix}{3:08x}")
    rig.put(True, prediction_id="01a2b3c4-d5e6-8fff-8abc-123400000000")
    rig.put(True, request_id="somebody's")
    rig.step()
    rig.delete(said[0])
    rig.delete("nobody's")
    write(segment, START)
    rig.clock.sleep(5)
    rig.step()
    event.remove(engine, "before_cursor_execute", note)
    assert {"matched", "duplicate", "conflict", "pending", "deleted"} <= set(rig.states().values())
    about = re.compile(r"(SELECT|UPDATE|DELETE|INSERT)\b.*\b(events|labels)\b", re.DOTALL)
    reads = {sql: values for sql, values in seen.items() if about.match(sql)}
    assert len(reads) >= 8
    with rig.writer.connection.begin():
        for sql, values in reads.items():
            plan = rig.writer.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values).all()
            scanned = [step[3] for step in plan if re.match(r"SCAN (events|labels)\b", step[3])]
            assert not scanned, sql
