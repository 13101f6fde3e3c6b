"""Times: when the requests of a batch came, waited and were decoded, side by side for counters and records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.telemetry.counters import VECTOR

if TYPE_CHECKING:
    from gateway.inference.call import Call

Nanoseconds = list[int] | NDArray[np.int64]


class Times(msgspec.Struct, gc=False):
    """Monotonic nanoseconds of each request, in order: lists for a few, arrays where these are quicker."""

    arrived: Nanoseconds
    queue: Nanoseconds
    decode: Nanoseconds

    @classmethod
    def of(cls, calls: Sequence[Call], began_ns: int) -> Times:
        """The times of calls whose run began at `began_ns`."""
        if len(calls) == 1:
            call = calls[0]
            return cls([call.arrived_ns], [began_ns - call.decoded_ns], [call.decode_ns])
        if len(calls) < VECTOR:
            return cls(
                [call.arrived_ns for call in calls],
                [began_ns - call.decoded_ns for call in calls],
                [call.decode_ns for call in calls],
            )
        return cls(
            np.array([call.arrived_ns for call in calls], np.int64),
            began_ns - np.array([call.decoded_ns for call in calls], np.int64),
            np.array([call.decode_ns for call in calls], np.int64),
        )

    def since(self, now_ns: int) -> Nanoseconds:
        """How long ago each of them came."""
        if isinstance(self.arrived, list):
            return [now_ns - arrived for arrived in self.arrived]
        return now_ns - self.arrived
