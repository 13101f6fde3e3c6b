"""The journal: every fact of the data plane, on disk before its reply. See journal.schema for the format."""
