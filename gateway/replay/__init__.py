"""Replay: what was logged is run again, to reproduce it bit for bit or to try another version on it."""
