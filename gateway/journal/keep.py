"""What of each tensor is kept, and in which form: rules of `model.toml`, and how they are applied. Pure.

``[journal.tensors.NAME]`` names an input or output: ``keep`` is full, sampled, digest or none; ``redact`` is drop,
mask, hmac or bucket, applied before anything is written. Without a rule everything is kept, and of tensors of more
than `LARGE` bytes a row a digest and a summary.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import xxhash
from msgspec import Meta

from gateway.oip.datatypes import DATATYPES, is_float
from gateway.types import Array, TensorSpec

LARGE = 64 << 10
"""Bytes of a row above which a tensor is kept as digest and summary where nothing is said."""

DIGEST_BYTES = 16
SUMMARY = ("min", "max", "mean", "nonfinite")
"""What the summary of a row holds, as float32; the first three of the finite values, NaN where there are none."""


class KeepRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of one tensor. `rate`: share of keys that is sampled. `width`: of the buckets of a number."""

    keep: Literal["full", "sampled", "digest", "none"] = "full"
    rate: Annotated[float, Meta(gt=0, le=1)] = 1.0
    redact: Literal["", "drop", "mask", "hmac", "bucket"] = ""
    width: Annotated[float, Meta(gt=0)] = 1.0


class JournalRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[journal]`` of a `model.toml`. `redaction_version` names the rules in every segment."""

    enabled: bool = True
    redaction_version: str = ""
    tensors: dict[str, KeepRule] = {}


class Kept(msgspec.Struct, frozen=True):
    """One tensor in the journal: its rule, and whether its rows have a column, which then has `shape` and `dtype`.

    `direct`: the column is what requests are decoded into.
    """

    name: str
    rule: KeepRule
    column: bool
    direct: bool

    def words(self) -> str:
        """The rule as a segment tells it."""
        rate = f" {self.rule.rate:g}" if self.rule.keep == "sampled" else ""
        return self.rule.keep + rate + (f" {self.rule.redact}" if self.rule.redact else "")


def decide(spec: TensorSpec, rules: dict[str, KeepRule], *, fixed: bool) -> Kept:
    """How a tensor is kept. `fixed`: its rows have one shape, so they can be a column where they are no strings."""
    size = DATATYPES[spec.datatype].size
    row_bytes = size * math.prod(spec.shape[1:]) if fixed and spec.shape is not None else 0
    rule = rules.get(spec.name) or KeepRule("digest" if row_bytes > LARGE else "full")
    if rule.redact == "drop":
        rule = msgspec.structs.replace(rule, keep="none")
    column = fixed and size > 0 and rule.keep == "full"
    return Kept(spec.name, rule, column, column and not rule.redact)


def check(rules: dict[str, KeepRule], specs: Sequence[TensorSpec]) -> None:
    """Raises ValueError where a rule names no tensor, or does not fit its datatype."""
    known = {spec.name: spec for spec in specs}
    for name, rule in rules.items():
        if name not in known:
            raise ValueError(f"model.toml: journal.tensors.{name[:64]} names no input or output of the model")
        numeric = DATATYPES[known[name].datatype].size > 0
        if rule.redact == "bucket" and not numeric:
            raise ValueError(f"model.toml: journal.tensors.{name[:64]}: strings have no buckets; use mask or hmac")
        if rule.redact == "bucket" and known[name].datatype == "BF16":
            raise ValueError(f"model.toml: journal.tensors.{name[:64]}: BF16 has no buckets; use mask")
        if rule.redact == "hmac" and numeric:
            raise ValueError(f"model.toml: journal.tensors.{name[:64]}: hmac is for strings; use bucket or mask")


def redact(rule: KeepRule, values: Array, secret: bytes) -> Array:
    """The values as they may be written; the same array where nothing is to be done."""
    if rule.redact == "mask":
        return np.full(values.shape, "***", object) if values.dtype == object else np.zeros_like(values)
    if rule.redact == "bucket" and values.dtype != np.bool_:
        # Rounded down to a multiple of the width; integers stay integers.
        buckets = np.floor(values.astype(np.float64) / rule.width) * rule.width
        with np.errstate(invalid="ignore"):
            return buckets.astype(values.dtype)
    if rule.redact == "hmac":
        flat = [hmac.new(secret, _raw(text), hashlib.sha256).hexdigest()[:32] for text in values.reshape(-1)]
        return np.array(flat, object).reshape(values.shape)
    return values


def is_sampled(rule: KeepRule, key: int, prediction_id: bytes) -> bool:
    """Whether a row is among those that are kept: always the same for the same key."""
    draw = key or xxhash.xxh3_64_intdigest(prediction_id)
    return draw < rule.rate * 2.0**64


def digest(rows: Array) -> Array:
    """XXH3 (128 bits) of each row: uint8 (rows, 16). It tells rows apart; it is no proof against forgery."""
    out = np.empty((len(rows), DIGEST_BYTES), np.uint8)
    for index, row in enumerate(rows):
        if row.dtype == object:
            data: bytes | memoryview = b"\0".join(map(_raw, row.reshape(-1)))
        else:
            data = np.ascontiguousarray(row).reshape(-1).view(np.uint8).data
        out[index] = np.frombuffer(xxhash.xxh3_128_digest(data), np.uint8)
    return out


def summary(rows: Array, datatype: str) -> Array:
    """SUMMARY of each row: float32 (rows, 4)."""
    out = np.full((len(rows), len(SUMMARY)), np.nan, np.float32)
    if rows.dtype == object or datatype == "BF16" or not rows.size:
        return out
    flat = rows.reshape(len(rows), -1)
    if not is_float(datatype):
        values = flat.astype(np.float64)
        out[:] = np.stack((values.min(1), values.max(1), values.mean(1), np.zeros(len(rows))), axis=1)
        return out
    with np.errstate(over="ignore", invalid="ignore"):
        mean = flat.mean(1)
    if np.isfinite(mean).all():
        # No value was NaN or infinite: three passes at the speed of memory, which large tensors need.
        out[:, 0], out[:, 1], out[:, 2], out[:, 3] = flat.min(1), flat.max(1), mean, 0
        return out
    finite = np.isfinite(flat)
    count = finite.sum(1)
    some = count > 0
    low = np.where(finite, flat, np.inf).min(1)
    high = np.where(finite, flat, -np.inf).max(1)
    total = np.where(finite, flat, 0).sum(1, dtype=np.float64)
    with np.errstate(over="ignore"):
        out[some, 0], out[some, 1] = low[some], high[some]
        out[some, 2] = total[some] / count[some]
    out[:, 3] = flat.shape[1] - count
    return out


def as_frame(array: Array) -> Any:
    """An array as a frame holds it: a list of strings, or dtype, shape and bytes."""
    if array.dtype == object:
        return array.tolist()
    return {"d": array.dtype.str, "s": list(array.shape), "b": np.ascontiguousarray(array).tobytes()}


def _raw(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogateescape")
