"""WatchedSession: a session that notes when it runs, so that a crash can be told from one of another version.

Where a version has crashed a worker before, its rows run one by one, each with its digest noted, and rows that crashed
several workers are refused before they reach the session.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from threading import get_ident
from typing import Any

import numpy as np

from gateway.errors import ClientError
from gateway.models.session import Session
from gateway.types import Array
from gateway.workers.notes import IDLE, RUNNING, Mark


class PayloadBlocked(ClientError):
    """An input that was in the run when workers died."""

    status = 422
    code = "payload-blocked"


class WatchedSession(Session):
    """Runs the session that it was made of. `suspect` and `refused` may change between two runs."""

    def __init__(self, session: Session, mark: Mark, *, batched: bool) -> None:
        # Nothing is loaded here: the other session was.
        self.contract, self.computes_alone = session.contract, session.computes_alone
        self.suspect = False
        self.refused: Collection[int] = frozenset()
        self._batched = batched
        self._mark = mark
        self._cells = mark.cells
        self._at = mark.at
        self._inner = session.run

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        """See Session. Raises PayloadBlocked for rows that have killed workers."""
        if self.suspect:
            return self._run_apart(inputs, outputs)
        cells, at = self._cells, self._at
        cells[at + 1] = get_ident()
        cells[at] = RUNNING
        try:
            return self._inner(inputs, outputs)
        finally:
            cells[at] = IDLE

    def release(self) -> None:
        """It runs no more."""
        self._mark.release()

    def _run_apart(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        """Row by row where that gives the same, so that it is known which one it was."""
        digests = row_digests(inputs)
        if any(digest in self.refused for digest in digests):
            raise PayloadBlocked("workers died of this input several times; it is not tried again")
        if not self._batched or len(digests) < 2:
            return self._run_noted(inputs, outputs, digests)
        rows = [
            self._run_noted({name: array[row : row + 1] for name, array in inputs.items()}, outputs, [digest])
            for row, digest in enumerate(digests)
        ]
        return tuple(np.concatenate(column) for column in zip(*rows, strict=True))

    def _run_noted(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], digests: Sequence[int]
    ) -> tuple[Array, ...]:
        self._mark.running(digests)
        try:
            return self._inner(inputs, outputs)
        finally:
            self._mark.idle()


def row_digests(inputs: Mapping[str, Array]) -> list[int]:
    """A 64-bit digest of each row, over all inputs; a single one where the inputs have no axis in common."""
    arrays = list(inputs.values())
    rows = {array.shape[0] if array.ndim else -1 for array in arrays}
    if len(rows) == 1 and -1 not in rows:
        return [_digest([array[row] for array in arrays]) for row in range(rows.pop())]
    return [_digest(arrays)]


def _digest(parts: Sequence[Any]) -> int:
    digest = blake2b(digest_size=8)
    for part in parts:
        # Texts are objects in numpy, and their bytes would be addresses. A row of a vector of texts is a text itself.
        is_number = isinstance(part, np.ndarray | np.generic) and part.dtype != object
        data = part.tobytes() if is_number else repr(np.asarray(part, object).tolist()).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little", signed=True)
