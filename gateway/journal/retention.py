"""Retention: what is to be done with each file of the journal and its archive. Pure decisions; keeper.py does them.

There are two classes, each with a space and an age: rows with their inputs (segments, and files of the archive), and
rows without. What outgrows the first passes into the second, the oldest first; what outgrows the second is deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

DAY_NS = 86_400_000_000_000


class Kind(StrEnum):
    """What a file is."""

    SEGMENT = "segment"
    FULL = "full"
    """A file of the archive with the inputs of its rows."""
    BARE = "bare"
    """A file of the archive without."""


class Verb(StrEnum):
    """What can be done with a file."""

    ARCHIVE = "archive"
    """Make the file of the archive of a segment."""
    RELEASE = "release"
    """Delete a segment that the archive has."""
    STRIP = "strip"
    """Take the inputs out of a file of the archive."""
    DELETE = "delete"
    """Delete rows for good."""


class File(NamedTuple):
    """One file, with what lies beside it. `bare_size`: of a FULL one without its inputs. Times are Unix nanoseconds.

    Of a SEGMENT: `sealed`: nothing is written to it any more; `damaged`: it cannot be archived; `is_read`: all who
    read segments have read it. Of the archive: `damaged`: not all that the segment should have had could be read.
    """

    prefix: str
    kind: Kind
    size: int
    opened_ns: int
    bare_size: int = 0
    sealed: bool = True
    damaged: bool = False
    is_read: bool = True


class Rules(NamedTuple):
    """Bytes and ages of the two classes; `archive`: whether segments are archived at all."""

    archive: bool
    disk_bytes: int
    inputs_age_ns: int
    rows_disk_bytes: int
    rows_age_ns: int


class Action(NamedTuple):
    """What is to be done with a file, and why."""

    verb: Verb
    file: File
    reason: str


def hurries(segment_bytes: int, rules: Rules) -> bool:
    """Whether segments must be archived although others need the cores: they take half of the space."""
    return 2 * segment_bytes >= rules.disk_bytes


def decide(files: Iterable[File], rules: Rules, now_ns: int) -> list[Action]:
    """What is to be done, in this order. Doing it and asking again comes to an end: each action leaves less to do."""
    ordered = sorted(files, key=lambda each: (each.opened_ns, each.prefix))
    archived = {each.prefix: each for each in ordered if each.kind != Kind.SEGMENT}
    actions: list[Action] = []
    left: list[File] = []
    for file in ordered:
        action = _by_age(file, rules, archived, now_ns) or _by_state(file, rules, archived)
        if action is not None:
            actions.append(action)
        if action is None or action.verb == Verb.ARCHIVE:
            left.append(file)
        elif action.verb == Verb.STRIP:
            left.append(file._replace(kind=Kind.BARE, size=file.bare_size))
    squeezed, left = _squeeze(left, rules, archived)
    actions += squeezed
    bare = [file for file in left if file.kind == Kind.BARE]
    over = sum(file.size for file in bare) - rules.rows_disk_bytes
    for file in bare:
        if over <= 0:
            break
        over -= file.size
        actions.append(Action(Verb.DELETE, file, "rows without inputs have no more space"))
    return actions


def _by_age(file: File, rules: Rules, archived: Mapping[str, File], now_ns: int) -> Action | None:
    age_ns = now_ns - file.opened_ns
    if file.kind == Kind.SEGMENT:
        if not file.sealed or age_ns <= rules.inputs_age_ns:
            return None
        if file.prefix in archived:
            # Also where somebody has not read it: else its archive would go first, and be made again from it.
            return Action(Verb.RELEASE, file, "its inputs are too old")
        is_lost = file.damaged or not rules.archive
        return Action(Verb.DELETE, file, "its rows are too old") if is_lost else None
    if age_ns > rules.rows_age_ns:
        return Action(Verb.DELETE, file, "its rows are too old")
    if file.kind == Kind.FULL and age_ns > rules.inputs_age_ns:
        return Action(Verb.STRIP, file, "its inputs are too old")
    return None


def _by_state(file: File, rules: Rules, archived: Mapping[str, File]) -> Action | None:
    if file.kind != Kind.SEGMENT or not file.sealed:
        return None
    if (there := archived.get(file.prefix)) is not None:
        # What the archive has not got whole stays for who can make more of it.
        done = file.is_read and not there.damaged
        return Action(Verb.RELEASE, file, "it is archived and was read") if done else None
    if rules.archive and not file.damaged:
        return Action(Verb.ARCHIVE, file, "it is sealed")
    return None


def _squeeze(left: Sequence[File], rules: Rules, archived: Mapping[str, File]) -> tuple[list[Action], list[File]]:
    """Bring the class of rows with inputs into its space: first what is there twice, then the oldest."""
    over = sum(file.size for file in left if file.kind != Kind.BARE) - rules.disk_bytes
    actions: list[Action] = []
    gone: set[File] = set()
    stripped: list[File] = []
    why = "rows with their inputs have no more space"
    for file in left:
        if over > 0 and file.kind == Kind.SEGMENT and file.sealed and file.prefix in archived:
            over -= file.size
            gone.add(file)
            actions.append(Action(Verb.RELEASE, file, why))
    for file in left:
        if over <= 0:
            break
        if file in gone or file.kind == Kind.BARE or not file.sealed:
            continue
        if file.kind == Kind.FULL:
            over -= file.size
            gone.add(file)
            stripped.append(file._replace(kind=Kind.BARE, size=file.bare_size))
            actions.append(Action(Verb.STRIP, file, why))
        elif file.damaged or not rules.archive:
            over -= file.size
            gone.add(file)
            actions.append(Action(Verb.DELETE, file, why))
    kept = [file for file in left if file not in gone] + stripped
    return actions, sorted(kept, key=lambda each: (each.opened_ns, each.prefix))
