"""Kinds of settings: how the text of a flag, a variable or a file becomes a checked value, and back."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {"": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": GIB}
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _itself(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Kind:
    """How a sort of value is read and shown.

    `accepts` completes the sentence "must be ...", `metavar` stands for the value in --help. `parse` takes the text of
    a flag or variable, or a TOML value, and gives the checked value or raises ValueError; `show` is its reverse, to
    what a TOML file would hold.
    """

    accepts: str
    metavar: str
    parse: Callable[[object], object]
    show: Callable[[Any], object] = _itself


def folder() -> Kind:
    """A path, taken from the working directory when it is relative."""

    def parse(raw: object) -> Path:
        if not isinstance(raw, str | Path) or not str(raw).strip() or "\0" in str(raw):
            raise ValueError
        return Path(raw)

    return Kind("a path", "DIR", parse, lambda path: path.as_posix())


def listening_host() -> Kind:
    """An address or host name to listen on."""

    def parse(raw: object) -> str:
        if not isinstance(raw, str) or not re.fullmatch(r"[!-~]+", raw):
            raise ValueError
        return raw

    return Kind("an address or host name without spaces", "HOST", parse)


def header_name() -> Kind:
    """The name of an HTTP header; case does not matter."""

    def parse(raw: object) -> str:
        if not isinstance(raw, str) or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", raw):
            raise ValueError
        return raw.lower()

    return Kind("the name of an HTTP header", "NAME", parse)


def web_address() -> Kind:
    """The beginning of a URL, without a slash at its end; or empty."""

    def parse(raw: object) -> str:
        pattern = r"(https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?)(/[!-~]*)?"
        if not isinstance(raw, str) or (raw and not re.fullmatch(pattern, raw)):
            raise ValueError
        return raw.rstrip("/")

    return Kind("empty or an address that begins with http:// or https://", "URL", parse)


def whole(low: int, high: int) -> Kind:
    """A whole number, both bounds included."""

    def parse(raw: object) -> int:
        if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,18}", raw):
            raw = int(raw)
        if isinstance(raw, bool) or not isinstance(raw, int) or not low <= raw <= high:
            raise ValueError
        return raw

    return Kind(f"a whole number from {low} to {high}", "N", parse)


def size(low: int, high: int) -> Kind:
    """A number of bytes, also written with a unit: ``8MiB``."""

    def parse(raw: object) -> int:
        if isinstance(raw, str):
            match = re.fullmatch(r"([0-9]{1,18}) ?([A-Za-z]*)", raw)
            if match is None or match[2].lower() not in _UNITS:
                raise ValueError
            raw = int(match[1]) * _UNITS[match[2].lower()]
        if isinstance(raw, bool) or not isinstance(raw, int) or not low <= raw <= high:
            raise ValueError
        return raw

    accepts = f"a size from {size_text(low)} to {size_text(high)}, in bytes or as in 64KiB, 8MiB, 2GiB"
    return Kind(accepts, "SIZE", parse, size_text)


def seconds(low: float, high: float) -> Kind:
    """A duration in seconds."""

    def parse(raw: object) -> float:
        if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", raw):
            raw = float(raw)
        # NaN is refused by the bounds: no comparison with it holds.
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not low <= raw <= high:
            raise ValueError
        return float(raw)

    return Kind(f"a number of seconds from {low:g} to {high:g}", "SECONDS", parse)


def choice(*words: str) -> Kind:
    """One of a few words, in any case."""

    def parse(raw: object) -> str:
        if not isinstance(raw, str) or raw.lower() not in words:
            raise ValueError
        return raw.lower()

    return Kind(f"one of {', '.join(words)}", f"{{{','.join(words)}}}", parse)


def switch() -> Kind:
    """On or off; the only kind without a metavar, because its flag takes no value: --access-log, --no-access-log."""

    def parse(raw: object) -> bool:
        if isinstance(raw, bool):
            return raw
        if not isinstance(raw, str) or raw.lower() not in _WORDS:
            raise ValueError
        return _WORDS[raw.lower()]

    return Kind("true or false", "", parse)


def names() -> Kind:
    """One or more different names, separated by commas or a list in the file."""

    def parse(raw: object) -> tuple[str, ...]:
        parts = raw.split(",") if isinstance(raw, str) else raw
        if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
            raise ValueError
        found = tuple(part.strip() for part in parts)
        if len(set(found)) < len(found) or not all(re.fullmatch(r"[A-Za-z0-9_]+", name) for name in found):
            raise ValueError
        return found

    return Kind("one or more different names separated by commas", "NAMES", parse, list)


def size_text(count: int) -> str:
    """`count` bytes in the largest unit that divides it: ``8MiB``, ``1000B``."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return f"{count}B"
