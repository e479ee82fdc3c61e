"""Measurements, as commands; none of them is a test."""

import os

# What pip installs has its bytecode; a checkout gets it at the first start, unless told not to.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
