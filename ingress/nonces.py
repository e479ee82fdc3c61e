"""Pure: which nonces were used, in a piece of memory that several processes share.

Law: a nonce, which counts until a second that is signed with it, is new at most once: whatever the
clock does, whichever process asks, and whenever one of them dies in the midst of writing. Whoever
asks holds a lock meanwhile.

The memory is ``SIZE_BYTES`` long, and never more: buckets of 63 slots, found by the nonce itself. A
slot holds a nonce and the last second at which it could be used; after that another takes its
place, and the bucket remembers the latest second that was overwritten: what counts no longer than
that is not new, even where a clock was set back. A bucket whose slots all still count is full; that
begins where about 150,000 nonces count at the same time.

It must not know what a nonce is for, nor where the memory comes from.
"""

from __future__ import annotations

import enum
import struct

BUCKETS = 4096
SLOTS = 63
KEY_BYTES = 16
_SECOND = struct.Struct("<Q")
#: of a bucket: the latest second that was overwritten, then each slot's
_SECONDS = struct.Struct(f"<{1 + SLOTS}Q")
_BUCKET_BYTES = _SECONDS.size + SLOTS * KEY_BYTES
SIZE_BYTES = BUCKETS * _BUCKET_BYTES


class Verdict(enum.Enum):
    """What is known of a nonce."""

    NEW = "new"
    USED = "used"
    UNKNOWN = "unknown"  #: there is no room to remember it


class Nonces:
    """The used ones in ``memory``, ``SIZE_BYTES`` of it, zeros at first."""

    __slots__ = ("_memory",)

    def __init__(self, memory: bytearray) -> None:
        self._memory = memory

    def take(self, key: bytes, counts_until: int, now: int) -> Verdict:
        """Use a nonce.

        Args:
            key: its ``KEY_BYTES`` bytes, evenly spread.
            counts_until: the last second at which it may be used.
            now: this second; both Unix seconds.
        """
        memory = self._memory
        start = int.from_bytes(key[:4], "little") % BUCKETS * _BUCKET_BYTES
        keys_at = start + _SECONDS.size
        overwritten, *seconds = _SECONDS.unpack_from(memory, start)
        if counts_until <= overwritten:
            return Verdict.USED
        if _holds(bytes(memory[keys_at : start + _BUCKET_BYTES]), key):
            return Verdict.USED
        if min(seconds) >= now:
            return Verdict.UNKNOWN
        self._put(start, key, counts_until)
        return Verdict.NEW

    def learn(self, other: Nonces) -> None:
        """Know all that ``other`` knows, too; what finds no room here is overwritten at once."""
        theirs = other._memory
        for start in range(0, BUCKETS * _BUCKET_BYTES, _BUCKET_BYTES):
            overwritten, *seconds = _SECONDS.unpack_from(theirs, start)
            self._overwrite(start, overwritten)
            for slot, second in enumerate(seconds):
                if second:
                    at = start + _SECONDS.size + slot * KEY_BYTES
                    self._put(start, bytes(theirs[at : at + KEY_BYTES]), second)

    def _put(self, start: int, key: bytes, second: int) -> None:
        """Remember it in the bucket at ``start``, in the place of what ends first."""
        memory = self._memory
        keys_at = start + _SECONDS.size
        if _holds(bytes(memory[keys_at : start + _BUCKET_BYTES]), key):
            return
        seconds = _SECONDS.unpack_from(memory, start)[1:]
        oldest = min(seconds)
        # In this order: a death between any two of them forgets nothing that was answered.
        self._overwrite(start, min(oldest, second))
        if oldest > second:
            return
        slot = seconds.index(oldest)
        key_at = keys_at + slot * KEY_BYTES
        memory[key_at : key_at + KEY_BYTES] = key
        second_at = start + (1 + slot) * _SECOND.size
        memory[second_at : second_at + _SECOND.size] = _SECOND.pack(second)

    def _overwrite(self, start: int, second: int) -> None:
        """Nothing in the bucket at ``start`` that counts until then is new."""
        memory = self._memory
        if second > _SECOND.unpack_from(memory, start)[0]:
            memory[start : start + _SECOND.size] = _SECOND.pack(second)


def _holds(keys: bytes, key: bytes) -> bool:
    """It is one of them, and not the end of one and the beginning of the next."""
    at = keys.find(key)
    while at % KEY_BYTES > 0 and at >= 0:
        at = keys.find(key, at + 1)
    return at >= 0
