"""What a replay found, as it is written to its report; also what a replay needs to go on where it ended."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec
import numpy as np

from gateway.errors import SettingError
from gateway.models import durable
from gateway.replay.compare import Difference, Tolerance
from gateway.replay.quality import Quality
from gateway.replay.runs import Rows
from gateway.types import Array

MAX_EXAMPLES = 20
FORMAT = 1

NOT_ANSWERED = "the model gave no answer to them then"
NO_INPUTS = "their inputs are not kept"
OTHER_TIME = "they are outside of the time"


class Wish(msgspec.Struct, frozen=True):
    """What is replayed: predictions of [since_ns, until_ns), by the versions that answered or by version `against`.

    label, score: the feedback name and the element of an output (``NAME`` or ``NAME:INDEX``) for the quality.
    """

    model: str
    versions: tuple[int, ...] = ()
    since_ns: int = 0
    until_ns: int = 1 << 62
    against: int | None = None
    tolerance: Tolerance = Tolerance()
    label: str = ""
    score: str = ""
    batch: int = 1024


class Example(msgspec.Struct, frozen=True):
    """A row whose answer is beyond the tolerance: the logged and the new one, at most ten elements of each."""

    prediction_id: str
    output: str
    logged: list[float | int | str | bool | None]
    replayed: list[float | int | str | bool | None]


class Answers(msgspec.Struct):
    """What came of the answers of one version file.

    digest: sha256 of the file that answered; file: of the one that was run now. rows: compared; same: bit for bit;
    regrouped: of these, those that were the same only when they ran in another grouping than the recorded one;
    beyond: outside of the tolerance. failed: the model raised. skipped: rows that were not run, by reason. run_s: time
    inside of the session. missing: why the version could not be run at all.
    """

    version: int
    digest: str
    file: str = ""
    rows: int = 0
    runs: int = 0
    same: int = 0
    regrouped: int = 0
    beyond: int = 0
    failed: int = 0
    skipped: dict[str, int] = {}
    outputs: dict[str, Difference] = {}
    examples: list[Example] = []
    run_s: float = 0.0
    missing: str = ""

    @property
    def altered(self) -> bool:
        """Whether the file of the version is not the one that answered."""
        return bool(self.file) and self.file != self.digest

    def takes(self, file: str) -> bool:
        """Whether rows that were run by this file belong with those that were run before."""
        return self.file in ("", file)

    def skip(self, reason: str, rows: int) -> None:
        """Rows that are not run."""
        if rows:
            self.skipped[reason] = self.skipped.get(reason, 0) + rows

    def output(self, name: str) -> Difference:
        """What was found of an output."""
        return self.outputs.setdefault(name, Difference())

    def example(self, rows: Rows, at: int, output: str, logged: Array, got: Array) -> None:
        """Show a row, while there are not many."""
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(Example(rows.name(at), output, _shown(logged), _shown(got)))


class Report(msgspec.Struct):
    """The whole report. `done`: rows by segment that are dealt with. `damaged`: what could not be read, in words."""

    wish: Wish
    answers: list[Answers] = []
    quality: dict[str, Quality] = {}
    figures: dict[str, dict[str, float]] = {}
    done: dict[str, int] = {}
    damaged: list[str] = []
    seconds: float = 0.0
    complete: bool = False
    reproduced: bool = False
    format: int = FORMAT

    def begin(self) -> None:
        """Go on from what is there: versions that were missing are looked for again."""
        for each in self.answers:
            each.skipped.pop(each.missing, None)
            each.missing = ""

    def of(self, version: int, digest: str) -> Answers:
        """The answers of one version file."""
        for each in self.answers:
            if (each.version, each.digest) == (version, digest):
                return each
        self.answers.append(Answers(version, digest))
        return self.answers[-1]

    def settle(self) -> None:
        """Draw the conclusion: every row that could be run was, the same or within the tolerance, by the right file."""
        ran = sum(each.rows for each in self.answers)
        wrong = any(each.beyond or each.failed or (each.altered and self.wish.against is None) for each in self.answers)
        wrong |= any(output.misshapen for each in self.answers for output in each.outputs.values())
        gaps = any(each.missing for each in self.answers)
        self.reproduced = self.complete and ran > 0 and not wrong and not gaps and not self.damaged
        self.figures = {name: quality.result() for name, quality in self.quality.items()}

    def save(self, path: Path) -> None:
        """Write it, whole or not at all. Raises OSError."""
        scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.writing")
        durable.write(scratch, msgspec.json.format(msgspec.json.encode(self)) + b"\n")
        os.replace(scratch, path)


def resume(path: Path, wish: Wish) -> Report:
    """The report to go on from; a new one where there is none. Raises SettingError where it is of something else."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Report)
    except FileNotFoundError:
        return Report(wish)
    except msgspec.DecodeError as error:
        raise SettingError(f"report: {path.name} is no report of a replay ({error})") from None
    if found.wish != wish or found.format != FORMAT:
        raise SettingError(f"report: {path.name} is of another replay than this one; give another name")
    return found


def _shown(array: Array) -> list[float | int | str | bool | None]:
    values: list[float | int | str | bool | None] = np.asarray(array).reshape(-1)[:10].tolist()
    return [None if isinstance(value, float) and not np.isfinite(value) else value for value in values]
