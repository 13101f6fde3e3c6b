"""How many users there are at which moment of a load test. Pure, and free of locust."""

from __future__ import annotations

SHAPES = ("step", "soak")
STEPS = 5
RAMP_SHARE = 0.1


def users_at(shape: str, elapsed_s: float, peak: int, duration_s: float) -> int | None:
    """Users at `elapsed_s` of a test that lasts `duration_s` and has at most `peak`; None when it is over.

    step: five equal steps up to the peak, to see where latency turns. soak: up within the first tenth of the time and
    then the peak to the end, to see what grows.
    """
    share = elapsed_s / duration_s
    if share >= 1:
        return None
    if shape == "step":
        return max(1, round(peak * (int(share * STEPS) + 1) / STEPS))
    return max(1, round(peak * min(1.0, share / RAMP_SHARE)))
