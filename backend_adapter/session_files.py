"""Open sessions at rest: one file each, for the adapter that comes after this one.

They outlive a process, not the run: they lie in the run's own directory, which goes with it, and
are not forced to the disk. What cannot be written or read costs only this: the session would not
survive a crash until it could be written. It must not know what a session is for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress

import msgspec

from backend_adapter.sessions import Session
from supervisor import private_dir

_log = logging.getLogger("backend_adapter")
_decode = msgspec.msgpack.Decoder(Session).decode


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class SessionFiles:
    """The files in ``directory``, which is made on demand and only this user may open."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._refused = ""  # why the latest write went wrong: it is said once

    @property
    def there(self) -> bool:
        """The directory is; cleaners of /tmp take what is old."""
        return os.path.isdir(self._directory)

    def save(self, session: Session) -> bool:
        """Write it, or write it anew. False: the disk refused."""
        path = self._path(session)
        try:
            private_dir.make(self._directory)
            with open(f"{path}.new", "wb", opener=_private) as file:
                file.write(msgspec.msgpack.encode(session))
            os.replace(f"{path}.new", path)
        except OSError as error:
            reason = error.strerror or str(error)
            if reason != self._refused:
                _log.warning("sessions are not kept on disk now: %s", reason)
            self._refused = reason
            return False
        self._refused = ""
        return True

    def drop(self, session: Session) -> None:
        """It is closed."""
        try:
            os.unlink(self._path(session))
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.warning("a closed session stays on disk: %s", error.strerror)

    def load(self) -> Iterator[Session]:
        """What an adapter before this one has left."""
        try:
            names = os.listdir(self._directory)
        except OSError:
            return
        for name in sorted(names):
            path = os.path.join(self._directory, name)
            session = None
            try:
                if not name.endswith(".new"):  # a write that did not end
                    with open(path, "rb") as file:
                        session = _decode(file.read())
            except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
                _log.warning("a session could not be read again: %s", error)
            if session is not None and session.session_id == name:
                yield session
            else:
                with suppress(OSError):
                    os.unlink(path)

    def _path(self, session: Session) -> str:
        return os.path.join(self._directory, session.session_id)
