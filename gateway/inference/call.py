"""Call: one inference from its headers to its reply, the only object that travels the whole path."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from gateway.errors import HeadgateError
from gateway.inference.block import Block
from gateway.models.servable import Servable
from gateway.types import Array, OutputRequest

if TYPE_CHECKING:
    from gateway.inference.writer import ReplyPlan


class Door(Protocol):
    """Who asked: a connection of the fast door, or the ASGI door. Exactly one of the two is called, once."""

    def answer(self, call: Call, body: bytes, json_length: int) -> None:
        """The reply; `json_length` < len(body) where binary data follows the JSON part."""
        ...

    def refuse(self, call: Call, error: HeadgateError) -> None:
        """An error instead of a reply."""
        ...


class Call:
    """A request in flight. It holds its version loaded until it is `done`; times are monotonic nanoseconds.

    After decoding its rows lie in `block` from `row` on; or, where shapes vary, in `arrays` of its own.
    `place` is the door's own note of where the reply goes. `gone` is True when nobody waits any more: the client
    left, or the call was answered already.
    """

    __slots__ = (
        "arrays",
        "arrived_ns",
        "block",
        "coding",
        "deadline_ns",
        "decode_ns",
        "decoded_ns",
        "done",
        "door",
        "gone",
        "id",
        "key",
        "literal",
        "outputs",
        "place",
        "plan",
        "prediction_id",
        "priority",
        "request_id",
        "row",
        "rows",
        "servable",
        "timeout_s",
    )

    def __init__(self, servable: Servable, door: Door, arrived_ns: int, request_id: str = "") -> None:
        servable.in_flight += 1
        self.servable = servable
        self.door = door
        self.arrived_ns = arrived_ns
        self.request_id = request_id
        self.decoded_ns = 0
        self.decode_ns = 0
        self.timeout_s: float | None = None
        self.deadline_ns = 0
        self.id = ""
        self.prediction_id = b""
        self.key = ""
        self.coding: str | None = None
        self.block: Block | None = None
        self.row = 0
        self.rows = 1
        self.arrays: Mapping[str, Array] | None = None
        self.plan: ReplyPlan | None = None
        self.outputs: tuple[OutputRequest, ...] = ()
        self.priority = 1
        self.place: Any = None
        self.literal = False
        self.gone = False
        self.done = False

    def name(self) -> str:
        """What the request is called in the log and in errors: the client's id for it, else one of ours."""
        if not self.request_id:
            self.request_id = self.prediction_id.decode() or secrets.token_hex(8)
        return self.request_id
