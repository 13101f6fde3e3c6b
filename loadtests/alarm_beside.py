"""Evidently and NannyML beside the alarms: their defaults on the same streams, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from loadtests.environments import EVIDENTLY, NANNYML, QUIET, NotMade, ensure
from loadtests.processes import ROOT
from monitors.types import Array

CHUNK = 1000
MOST = 12
"""Evidently looks at no more chunks of a stream: a report takes a second or more."""

PATIENCE_S = 3600.0
WHOLE = "Share of Drifted Columns"
"""How the name of Evidently's test of a whole report begins; the others are about one column each."""


class PeerFailed(Exception):
    """A library gave no answer; the text is one sentence."""


@dataclass(frozen=True)
class Looked:
    """Chunks in which something was alarmed on, of those that were looked at. `breaks`: rows that part the stream."""

    alarmed: Mapping[int, bool]
    breaks: Sequence[int] = ()

    def __str__(self) -> str:
        """`alarmed of looked at`, for each part of the stream."""
        ends = [0, *(row // CHUNK for row in self.breaks), sys.maxsize]
        parts = []
        for first, stop in zip(ends, ends[1:], strict=False):
            own = [alarm for number, alarm in self.alarmed.items() if first <= number < stop]
            parts.append(f"{sum(own)} of {len(own)}")
        return ", ".join(parts)


class Streams:
    """Asks the libraries. Each stream is written to a folder of its own, which ends with the context."""

    def __init__(self, quick: bool) -> None:
        """`quick`: a few chunks alone."""
        self._most = 3 if quick else MOST
        self._scratch = tempfile.TemporaryDirectory(prefix="headgate-alarms-")
        self._answers: dict[tuple[str, str], dict[int, list[str]]] = {}
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def ask(
        self,
        peer: str,
        stream: str,
        columns: Callable[[], tuple[Mapping[str, Array], Mapping[str, Array]]],
        breaks: Sequence[int] = (),
        counts: Callable[[str], bool] = lambda alarm: True,
    ) -> str:
        """In how many chunks of `stream` a library alarms on what `counts`; or in words why that is not known.

        `columns` are those of the baseline and those of the stream. A stream of one name is looked at once.
        """
        if (peer, stream) not in self._answers:
            try:
                self._answers[peer, stream] = self._look(peer, stream, columns)
            except (NotMade, PeerFailed) as error:
                print(f"{peer}, {stream}: {error}", file=sys.stderr)
                return "not measured"
        looks = self._answers[peer, stream]
        return str(Looked({number: any(map(counts, alarms)) for number, alarms in looks.items()}, breaks))

    def _look(
        self, peer: str, stream: str, columns: Callable[[], tuple[Mapping[str, Array], Mapping[str, Array]]]
    ) -> dict[int, list[str]]:
        python = ensure(*(EVIDENTLY if peer.startswith("evidently") else NANNYML))
        folder = Path(self._scratch.name) / stream.replace("/", " ")
        if not folder.exists():
            folder.mkdir()
            for part, arrays in zip(("known", "stream"), columns(), strict=True):
                parquet.write_table(pa.table(dict(arrays)), folder / f"{part}.parquet")
        command = [str(python), str(ROOT / "loadtests" / "alarm_peers.py"), peer, str(folder)]
        command += [str(CHUNK), str(self._most)]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, env={**os.environ, **QUIET}, cwd=folder
        )
        if result.returncode:
            raise PeerFailed((result.stderr.strip().splitlines() or ["no message"])[-1][:200])
        found = json.loads(result.stdout.strip().splitlines()[-1])
        self.versions[peer.partition("-")[0]] = found["version"]
        return {int(number): alarms for number, alarms in found["looks"].items()}
