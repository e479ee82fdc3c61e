"""A listening port that hears no new client, while those that it has heard are still accepted.

A port that is closed resets every connection that the kernel has taken and nobody has accepted yet:
there is always one more where many come. So a filter drops the first packet of each new one (SYN):
its client sends it again a second later, and finds the port closed, or another process behind it.

Source: socket(7), SO_ATTACH_FILTER; the packet begins with the TCP header (RFC 9293, 3.1). A leaf.
"""

from __future__ import annotations

import ctypes
import socket
import struct

_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
_FLAGS_AT, _SYN, _NOTHING, _WHOLE = 13, 0x02, 0, 0xFFFF
#: <linux/filter.h>: load a byte, jump if a bit is set, return so many bytes of the packet.
_LOAD, _JUMP_IF_SET, _RETURN = 0x30, 0x45, 0x06
_DROP_SYN = b"".join(
    struct.pack("HBBI", *step)
    for step in (
        (_LOAD, 0, 0, _FLAGS_AT),
        (_JUMP_IF_SET, 0, 1, _SYN),
        (_RETURN, 0, 0, _NOTHING),
        (_RETURN, 0, 0, _WHOLE),
    )
)


def deafen(listener: socket.socket) -> None:
    """Let it hear nobody new any more. Raises OSError: the system has no such filters."""
    steps = ctypes.create_string_buffer(_DROP_SYN)
    program = struct.pack("HL", len(_DROP_SYN) // 8, ctypes.addressof(steps))  # struct sock_fprog
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
