"""Fuzzers of what reads strangers' bytes."""

#: The targets (``targets.py``).
NAMES = ("envelope", "http", "sessions", "settings", "wire")
#: What makes the inputs (``mutate.py``, ``drawn.py``, ``guided.py``).
ENGINES = ("mutate", "hypothesis", "atheris")
