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
    """

    # Most calls never set most of these: a default on the class costs a request nothing.
    request_id = ""
    key = ""
    id = ""
    prediction_id = b""
    priority = 1
    literal = False
    timeout_s: float | None = None
    block: Block | None = None
    arrays: Mapping[str, Array] | None = None
    row = 0
    rows = 1
    segment: Segment | None = None
    slot = 0
    noted = False
    trace = ""
    outcome = 0
    outputs: tuple[OutputRequest, ...] = ()
    plan: ReplyPlan | None = None
    decode_ns = 0
    decoded_ns = 0
    head: Any = None
    reply: bytes | None = None
    close = False
    gone = False
    done = False

    def __init__(self, servable: Servable, door: Door, arrived_ns: int, deadline_ns: int) -> None:
        servable.in_flight += 1
        self.servable = servable
        self.door = door
        self.arrived_ns = arrived_ns
        self.deadline_ns = deadline_ns

    def name(self) -> str:
        """What the request is called in the log and in errors: the client's id for it, else one of ours."""
        if not self.request_id:
            self.request_id = self.prediction_id.decode() or secrets.token_hex(8)
        return self.request_id
