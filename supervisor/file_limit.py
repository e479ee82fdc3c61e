"""How many file descriptors a process may have, and how many connections that leaves it.

A connection is a descriptor, and more while its request's body lies in a file, or is on its way to
the model server. Law: who accepts or opens many stays below the limit by what the rest of the
process needs; at the limit itself a client would be reset instead of told, and a model server would
look dead because nobody can connect to it.

A leaf.
"""

from __future__ import annotations

import resource

#: Descriptors that a child of ours may have, where the system lets it.
MAX_FILES = 65_536
#: Those that connections are never given: the other sockets, files, and the moment.
RESERVED = 192


def raise_limit() -> None:
    """As far as the system lets it: the soft limit is mostly 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, MAX_FILES) if hard != resource.RLIM_INFINITY else MAX_FILES
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections(most: int, each: int) -> int:
    """``most``, or what the limit leaves of it beside ``RESERVED`` descriptors; 1 at least.

    ``each``: descriptors that one may need.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return most
    return max(1, min(most, (limit - RESERVED) // each))
