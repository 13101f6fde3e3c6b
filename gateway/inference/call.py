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
    from gateway.journal.segment import Segment


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
    `head`, `reply` and `close` belong to the door: where the reply goes. `gone` is True when nobody waits any more:
    the client left, or the call was answered already; `outcome` is then the status of its record, where that is known.
    A call without a block has its record in row `slot` of `segment`. `noted`: it brought an id, a key or a `trace`.
    `plain`: one row of a block, nothing noted, no wish but which outputs: what most calls are.
    """

    # Slots, all of them set at once: what has a default on the class is found and set in ten times the time.
    __slots__ = (
        *("arrays", "arrived_ns", "block", "close", "deadline_ns", "decode_ns", "decoded_ns", "done", "door", "gone"),
        *("head", "id", "key", "literal", "noted", "outcome", "outputs", "plain", "plan", "prediction_id", "priority"),
        *("reply", "request_id", "row", "rows", "segment", "servable", "slot", "timeout_s", "trace"),
    )

    def __init__(self, servable: Servable, door: Door, arrived_ns: int, deadline_ns: int) -> None:
        servable.in_flight += 1
        self.servable = servable
        self.door = door
        self.arrived_ns = arrived_ns
        self.deadline_ns = deadline_ns
        self.priority = self.rows = 1
        self.row = self.slot = self.outcome = self.decode_ns = self.decoded_ns = 0
        self.noted = self.literal = self.plain = self.close = self.gone = self.done = False
        self.request_id = self.key = self.id = self.trace = ""
        self.prediction_id = b""
        self.outputs: tuple[OutputRequest, ...] = ()
        self.head: Any = None
        self.timeout_s: float | None = None
        self.block: Block | None = None
        self.arrays: Mapping[str, Array] | None = None
        self.segment: Segment | None = None
        self.plan: ReplyPlan | None = None
        self.reply: bytes | None = None

    def name(self) -> str:
        """What the request is called in the log and in errors: the client's id for it, else one of ours."""
        if not self.request_id:
            self.request_id = self.prediction_id.decode() or secrets.token_hex(8)
        return self.request_id
