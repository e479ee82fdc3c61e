"""A child that misbehaves on purpose: ``python -m tests.kit.misbehaving MODE [ARGS]``.

    exit CODE [WORDS]     print WORDS, exit with CODE
    kill_self SIGNAL      die by that signal
    ignore_term           print "ready", ignore SIGTERM and SIGINT, sleep
    fork_tree WIDTH DEPTH each process has WIDTH children, DEPTH deep; every one prints "pid N"
    double_fork_daemon    leave a daemon in a session of its own; print "pid N" of it; exit 0
    orphans COUNT         leave COUNT grandchildren that exit; print "done", sleep
    flood BYTES LINE      print BYTES bytes in lines of LINE bytes (0: all in one line), then "done"
    print_lines COUNT     print "line 0" and so on, exit 0
    listen                listen on a free TCP port, print "port N", sleep
    show                  print the open descriptors, the signal masks and the session, exit 0
    sleep                 print "ready", sleep

Nothing here outlives ``LIFETIME_S``, should a test forget it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import NoReturn

LIFETIME_S = 300


def _say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def _sleep() -> NoReturn:
    signal.alarm(LIFETIME_S)  # not inherited by forks: every sleeper sets its own
    while True:
        time.sleep(LIFETIME_S)


def _fork_tree(width: int, depth: int) -> NoReturn:
    _say(f"pid {os.getpid()}")
    if depth:
        for _ in range(width):
            if os.fork() == 0:
                _fork_tree(width, depth - 1)
    _sleep()


def _double_fork_daemon() -> NoReturn:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            _say(f"pid {os.getpid()}")
            _sleep()
        os._exit(0)
    os.wait()
    sys.exit(0)


def _orphans(count: int) -> NoReturn:
    for _ in range(count):
        child = os.fork()
        if child == 0:
            os.fork()
            os._exit(0)
        os.waitpid(child, 0)
    _say("done")
    _sleep()


def _flood(size: int, line_bytes: int) -> None:
    piece = b"x" * (line_bytes - 1) + b"\n" if line_bytes else b"x" * 65536
    block = piece * max(1, 65536 // len(piece))
    left = size
    while left > 0:
        left -= os.write(1, block[:left])
    _say("\ndone")


def _show() -> None:
    _say("fds " + " ".join(sorted(os.listdir("/proc/self/fd"), key=int)[:-1]))
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(("SigBlk", "SigIgn")):
                name, value = line.split()
                _say(f"{name.rstrip(':')} {int(value, 16)}")
    _say(f"leads {os.getsid(0) == os.getpid()}")


def main(mode: str, *args: str) -> None:
    """Behave as ``mode`` says."""
    match mode, args:
        case "exit", [code, *words]:
            if words:
                _say(" ".join(words))
            sys.exit(int(code))
        case "kill_self", [number]:
            os.kill(os.getpid(), int(number))
            _sleep()
        case "ignore_term", []:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _say("ready")
            _sleep()
        case "fork_tree", [width, depth]:
            _fork_tree(int(width), int(depth))
        case "double_fork_daemon", []:
            _double_fork_daemon()
        case "orphans", [count]:
            _orphans(int(count))
        case "flood", [size, line]:
            _flood(int(size), int(line))
        case "print_lines", [count]:
            for index in range(int(count)):
                _say(f"line {index}")
        case "listen", []:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                _say(f"port {listener.getsockname()[1]}")
                _sleep()
        case "show", []:
            _show()
        case "sleep", []:
            _say("ready")
            _sleep()
        case _:
            sys.exit(f"{__doc__}\nunknown: {mode} {args}")


if __name__ == "__main__":
    main(*sys.argv[1:])
