"""How long one client may take: rules that ``connection.py`` applies once a second.

Pure: a figure in, a verdict out. It knows neither requests nor sockets.
"""

from __future__ import annotations

#: Bytes per second that a body has to keep up with as a whole, once its first patience is over.
BODY_RATE = 4096
#: Seconds for which requests that came too early, more of them than are held, are left unread. Then
#: they are thrown away: behind them nobody would see that the client has left.
PIPELINE_S = 10.0


def too_slow(size_bytes: int, arrived_at: float, patience_s: float, now: float) -> bool:
    """A body's sender gives a byte now and then, and holds its place for ever.

    Args:
        size_bytes: of the body, so far.
        arrived_at: monotonic time of the request's head.
        patience_s: seconds in which nothing is asked of it.
        now: monotonic time.
    """
    return size_bytes < (now - arrived_at - patience_s) * BODY_RATE
