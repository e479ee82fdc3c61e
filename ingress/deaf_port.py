"""A listening port that hears no new client, while those that it has heard are still accepted.

A port that is closed resets every connection that the kernel has taken and nobody has accepted yet:
there is always one more where many come. So a filter drops what arrives first: a client whose SYN
was dropped sends it again a second later, and finds the port closed, or another process behind it.

Source: socket(7), SO_ATTACH_FILTER. A leaf.
"""

from __future__ import annotations

import ctypes
import socket
import struct

_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
_BPF_RET = 0x06  # with the constant 0: keep no byte of any packet


def deafen(listener: socket.socket) -> None:
    """Let it hear nobody any more. Raises OSError: the system has no such filters."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(drop_all))  # struct sock_fprog
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
