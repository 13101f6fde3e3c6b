"""Feedback: what really happened, or what somebody thinks of a prediction. Kept as events; see feedback.event."""
