"""Scanning a crafted model: the sentence that it is refused with, or the report on it."""

from __future__ import annotations

import pytest
from onnx import ModelProto

from gateway.errors import LoadRejected
from gateway.models.scan import ScanLimits, ScanReport, scan


def refusal(crafted: ModelProto | bytes, limits: ScanLimits | None = None) -> str:
    """The sentence a model is refused with."""
    data = crafted if isinstance(crafted, bytes) else crafted.SerializeToString()
    with pytest.raises(LoadRejected) as caught:
        scan(data, limits or ScanLimits())
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message
    return caught.value.message


def report(good: ModelProto | bytes, limits: ScanLimits | None = None) -> ScanReport:
    """The report on a model that must pass."""
    return scan(good if isinstance(good, bytes) else good.SerializeToString(), limits or ScanLimits())
