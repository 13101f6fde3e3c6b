"""The path of one inference: from a decoded request through a session to a response."""
