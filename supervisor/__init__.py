"""The ground floor of the worker: settings, wire, child runtime, and the supervisor itself.

    ingress → backend_adapter → reporter → supervisor        (imports point this way only)

``python -m supervisor`` is the only command on an instance. It starts the model server, the
``ingress``, ``backend_adapter`` and ``reporter`` processes (by module name; it imports none of
them), listens to their heartbeats, restarts what dies or hangs, and takes everything down in order.

Inside every package: ``messages.py`` holds the words of the socket that the package's process
binds, the pure rooms hold the rules ``(event, now) → commands``, ``process.py`` is the hands.
"""

#: The distribution that this package belongs to. Another distribution (the process manager of
#: the same name) also ships a package called ``supervisor``; the entries tell them apart by this.
DISTRIBUTION = "lighterman"

__version__ = "0.1.0"
