"""Drift: statistics of two count matrices on the same frozen bins. See `monitors.drift.report` for all of them."""
