"""Admission: permits, taken before a body is read. Pure counting; time comes from outside."""

from __future__ import annotations

import math

import msgspec

from gateway.errors import QueueFull, QuotaExceeded


class Quotas(msgspec.Struct, frozen=True):
    """Requests that may be in flight at once: in all, for one model, and for one client key (0: no bound).

    `max_wait_s` is the longest expected wait for a session that is still accepted.
    """

    total: int = 4096
    per_model: int = 2048
    per_client: int = 0
    max_wait_s: float = 1.0


class Admission:
    """Counts the calls in flight. `admit` and `leave` come in pairs."""

    def __init__(self, quotas: Quotas) -> None:
        self.quotas = quotas
        self.in_flight = 0
        self._total, self._per_model = quotas.total, quotas.per_model
        self._max_wait_s = quotas.max_wait_s
        self._per_client = quotas.per_client
        self._clients: dict[str, int] = {}

    def admit(self, model: str, in_flight: int, wait_s: float, key: str) -> None:
        """Take a permit. `in_flight` counts the model's calls, `wait_s` is its expected wait.

        Raises QueueFull or QuotaExceeded; then no permit was taken.
        """
        if in_flight >= self._per_model or self.in_flight >= self._total or wait_s > self._max_wait_s:
            raise QueueFull(f"the queue of model {model!r} is full", retry_after_s=max(1, math.ceil(wait_s)))
        if self._per_client and key:
            count = self._clients.get(key, 0)
            if count >= self._per_client:
                raise QuotaExceeded(f"this client has {count} requests in flight, its quota is {self._per_client}")
            self._clients[key] = count + 1
        self.in_flight += 1

    def leave(self, key: str, count: int = 1) -> None:
        """Give `count` permits back."""
        self.in_flight -= count
        if self._per_client and key:
            left = self._clients[key] - count
            if left:
                self._clients[key] = left
            else:
                del self._clients[key]
