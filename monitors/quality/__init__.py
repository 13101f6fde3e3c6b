"""Data quality: what is missing, out of range, never seen, constant, repeated or late."""
