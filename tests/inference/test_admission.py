"""Admission: permits come in pairs, and each bound is a bound of its own."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.errors import QueueFull, QuotaExceeded
from gateway.inference.admission import Admission, Quotas


class AdmissionMachine(RuleBasedStateMachine):
    """Calls of two models and three clients come and go, against a model of who is inside."""

    quotas = Quotas(total=6, per_model=4, per_client=3, max_wait_s=1.0)

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(self.quotas)
        self.inside: list[tuple[str, str]] = []

    @rule(model=st.sampled_from("mn"), key=st.sampled_from(["", "a", "b"]), wait_s=st.sampled_from([0.0, 1.0, 1.5]))
    def admit(self, model: str, key: str, wait_s: float) -> None:
        models, keys = Counter(model for model, _ in self.inside), Counter(key for _, key in self.inside)
        full = models[model] >= 4 or len(self.inside) >= 6 or wait_s > 1.0
        over = bool(key) and keys[key] >= 3
        refusal = None
        try:
            self.admission.admit(model, models[model], wait_s, key)
        except QueueFull as error:
            refusal = error
        if refusal is None:
            assert not full
            assert not over
            self.inside.append((model, key))
            return
        assert isinstance(refusal, QuotaExceeded) == (over and not full)
        assert full or over
        assert (refusal.status, refusal.code) == (429, "queue-full" if full else "quota-exceeded")
        assert int(refusal.headers["Retry-After"]) >= max(1, wait_s if full else 1)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.admission.leave(self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1)))[1])

    @invariant()
    def it_counts_those_inside(self) -> None:
        assert self.admission.in_flight == len(self.inside)

    @invariant()
    def it_remembers_no_client_that_has_left(self) -> None:
        assert set(self.admission._clients) == {key for _, key in self.inside if key}


TestPermitsComeInPairs = AdmissionMachine.TestCase
TestPermitsComeInPairs.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_without_a_quota_clients_are_not_told_apart_nor_remembered() -> None:
    admission = Admission(Quotas(per_client=0))
    for _ in range(100):
        admission.admit("m", 0, 0.0, "one client")
    assert not admission._clients


def test_a_wait_that_is_too_long_is_refused_with_the_time_after_which_to_ask_again() -> None:
    with pytest.raises(QueueFull, match="'m'") as refused:
        Admission(Quotas(max_wait_s=1.0)).admit("m", 0, 2.5, "")
    assert refused.value.headers == {"Retry-After": "3"}
