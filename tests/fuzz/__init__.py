"""Fuzzers of what reads strangers' bytes."""

#: The targets (``targets.py``).
NAMES = ("envelope", "http", "sessions", "settings", "wire")
