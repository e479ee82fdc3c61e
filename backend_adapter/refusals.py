"""Pure: what is said to a job that does not run, in words that tell its sender what to do.

When a job is refused is ``queue.py``'s decision; here is only how that is told.
"""

from __future__ import annotations

from backend_adapter.jobs import Job, Reject

MIN_RETRY_S = 1.0  #: shortest Retry-After that is given where one is given at all


def all_places_taken(waiting: int) -> str:
    """So many wait."""
    return f"{waiting} requests wait already, which is the most that may; retry later"


def no_room(job: Job, held_bytes: int, max_bytes: int) -> str:
    """Its body is too large for what the others leave."""
    return (
        f"queued bodies hold {held_bytes} of {max_bytes} bytes, which leaves no room for"
        f" {job.size_bytes} more; retry later"
    )


def draining(job: Job) -> Reject:
    """The worker stops."""
    return Reject(job, "draining", "the worker is stopping; send the request elsewhere")


def model_down(job: Job, reason: str) -> Reject:
    """The model server will not be started again."""
    text = f"the model server failed for good ({reason}); send the request elsewhere"
    return Reject(job, "model_down", text)


def not_ready(job: Job, reason: str) -> Reject:
    """It had to wait for the model server for longer than it may."""
    text = f"the model server is not ready: {reason}; retry later"
    return Reject(job, "not_ready", text, MIN_RETRY_S)


def not_again(job: Job, reason: str) -> str:
    """It was sent as often as it may be, and not answered."""
    if job.submit.redeliver:
        return f"{reason}; the request was sent {job.attempts} times, and is not sent again"
    return f"{reason}; its route may not run twice"


def hooks_down(job: Job, for_good: bool) -> Reject:
    """The process that holds the worker.py is away."""
    if for_good:
        text = "worker.py failed for good: the worker's log says why; send the request elsewhere"
        return Reject(job, "hooks_down", text)
    return Reject(job, "hooks_down", "worker.py is being started again; retry later", MIN_RETRY_S)


def queue_time(job: Job, others: int, retry_after_s: float, position: int) -> Reject:
    """It would wait, or has waited, longer than it may."""
    text = (
        f"the wait is longer than the {job.submit.max_queue_time_s:g} s that this request may"
        f" wait; {others} others are in the queue or running; retry later"
    )
    return Reject(job, "queue_time", text, retry_after_s, position)
