"""Contents: what the frames of the journal hold of the tensors of a version, as the rules of what is kept say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import xxhash

from gateway.journal import keep
from gateway.journal.keep import Kept
from gateway.types import Array, Contract

if TYPE_CHECKING:
    from gateway.inference.call import Call
    from gateway.journal.segment import Segment


class Contents:
    """Applies the rules of one version; `secret` is what strings are hashed with."""

    def __init__(self, contract: Contract, secret: bytes) -> None:
        self._datatypes = {spec.name: spec.datatype for spec in (*contract.inputs, *contract.outputs)}
        self._secret = secret

    def stretch(
        self, frame: dict[str, Any], group: str, kept: Kept, array: Array, segment: Segment, start: int
    ) -> None:
        """What a rule leaves of an array of several rows, into a frame."""
        rule = kept.rule
        if rule.keep == "full":
            frame.setdefault(group, {})[kept.name] = keep.as_frame(keep.redact(rule, array, self._secret))
        elif rule.keep == "digest":
            array = keep.redact(rule, array, self._secret)
            frame.setdefault("digest", {})[kept.name] = keep.digest(array).tobytes()
            frame.setdefault("summary", {})[kept.name] = keep.summary(array, self._datatypes[kept.name]).tobytes()
        else:
            keys = segment.key[start : start + len(array)].tolist()
            chosen = [
                index
                for index, key in enumerate(keys)
                if keep.is_sampled(rule, key, segment.prefix + b"%08x" % (start + index))
            ]
            if chosen:
                values = keep.as_frame(keep.redact(rule, array[chosen], self._secret))
                frame.setdefault("samples", {})[kept.name] = {"at": chosen, "values": values}

    def whole(self, kepts: Iterable[Kept], values: Any, call: Call, *, always: bool = False) -> dict[str, Any]:
        """The arrays of one call as its frame holds them; `always`: also where a rule that samples would not."""
        found: dict[str, Any] = {}
        for kept in kepts:
            array = values.get(kept.name)
            if array is None or kept.rule.keep == "none":
                continue
            rule = kept.rule
            key = hash_key(call.key) if call.key else 0
            if rule.keep == "digest":
                whole = keep.redact(rule, array, self._secret).reshape(1, -1)
                marks = keep.digest(whole).tobytes(), keep.summary(whole, self._datatypes[kept.name]).tobytes()
                found[kept.name] = {"digest": marks[0], "summary": marks[1], "s": list(array.shape)}
            elif rule.keep == "full" or always or keep.is_sampled(rule, key, call.prediction_id):
                found[kept.name] = keep.as_frame(keep.redact(rule, array, self._secret))
        return found


def note(frame: dict[str, Any], calls: Sequence[Call], base: int) -> None:
    """The names that clients gave to their requests."""
    notes = [
        [call.slot if call.block is None else base + call.row, call.request_id, call.id, call.trace]
        for call in calls
        if call.request_id or call.id or call.trace
    ]
    if notes:
        frame["notes"] = notes


def hash_key(key: str) -> int:
    """The 64 bits that stand for a client's key in records; they route it, too."""
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogateescape"))
