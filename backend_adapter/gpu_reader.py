"""The process that asks NVML about the GPUs: ``python -m backend_adapter.gpu_reader SECONDS``.

It is a process of its own because a call into the driver of a GPU that has fallen off may hang for
ever, in a way that not even SIGKILL ends: whoever called it can then neither work nor end. Here
that harms nobody.

It says what it sees as lines of JSON on stdout (``gpu_words.py``): every device each ``SECONDS``,
and at once when the driver reports an error. It ends when nobody reads, or NVML cannot be asked.
It judges nothing.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pynvml

from backend_adapter.gpu_words import (
    MAX_GPUS,
    MAX_NAME_CHARS,
    MAX_WORDS_CHARS,
    Gone,
    Reading,
    Said,
    Seen,
    XidEvent,
)

#: While a device is in error NVML is opened anew this often: it may not notice a recovery itself.
REOPEN_S = 60.0
#: Between two events: an application's own faults may come by the thousand.
EVENT_PAUSE_S = 0.1
_ABSENT = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
#: With these, nothing that ran on the device lives.
_FATAL = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)


class Device:
    """One device of this opening of NVML."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.uuid = ""
        self._name = ""
        self._handle: Any = None
        self._registered = False

    @property
    def address(self) -> int | None:
        """By which events name it."""
        return None if self._handle is None else ctypes.cast(self._handle, ctypes.c_void_p).value

    def read(self, events: Any) -> Reading | None:
        """Ask everything; None: it is not ours to look at."""
        try:
            if self._handle is None:
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(self.index)
            handle = self._handle
            self._name = self._name or pynvml.nvmlDeviceGetName(handle)[:MAX_NAME_CHARS]
            self.uuid = pynvml.nvmlDeviceGetUUID(handle)
            self._register(events)
            return self._reading(handle)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_NO_PERMISSION:
                return None
            return Reading(
                index=self.index, name=self._name, uuid=self.uuid, error=words(error),
                fatal=error.value in _FATAL,
            )  # fmt: skip

    def _register(self, events: Any) -> None:
        if not self._registered and events is not None:
            self._registered = True
            with suppress(pynvml.NVMLError):  # not every device reports events
                pynvml.nvmlDeviceRegisterEvents(
                    self._handle, pynvml.nvmlEventTypeXidCriticalError, events
                )

    def _reading(self, handle: Any) -> Reading:
        ecc = optional(
            pynvml.nvmlDeviceGetTotalEccErrors, handle,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC,
        )  # fmt: skip
        memory = optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
        load = optional(pynvml.nvmlDeviceGetUtilizationRates, handle)
        return Reading(
            index=self.index,
            name=self._name,
            uuid=self.uuid,
            ecc=-1 if ecc is None else ecc,
            recovery=recovery_action(handle),
            notes=list(notes(handle)),
            used_bytes=0 if memory is None else memory.used,
            total_bytes=0 if memory is None else memory.total,
            utilization=-1.0 if load is None else load.gpu / 100,
        )


def optional(call: Callable[..., Any], *args: Any) -> Any:
    """What the call returns; None where the device does not know it. Raises when it is lost."""
    try:
        return call(*args)
    except pynvml.NVMLError as error:
        if error.value in _FATAL:
            raise
        return None


def recovery_action(handle: Any) -> int:
    """What has to be done before the device can be used again; -1: it does not say."""
    fields = optional(
        pynvml.nvmlDeviceGetFieldValues, handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]
    )
    if fields is None or fields[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return -1
    return int(fields[0].value.uiVal)


def notes(handle: Any) -> Iterator[str]:
    """What is not well with its memory, and lets work go on."""
    rows = optional(pynvml.nvmlDeviceGetRemappedRows, handle)
    if rows is not None:
        _, _, pending, failed = rows
        if pending:
            yield "rows of its memory are to be remapped at the next reset"
        if failed:
            yield "a row of its memory could not be remapped"
    if optional(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle):
        yield "pages of its memory are to be retired at the next reset"


def words(error: pynvml.NVMLError) -> str:
    """NVML's own words."""
    return str(error)[:MAX_WORDS_CHARS]


def say(said: Said) -> None:
    """One line; ends the process when nobody reads."""
    try:
        sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
        sys.stdout.buffer.flush()
    except OSError:
        sys.exit(0)


def session(every_s: float) -> None:
    """Read and say, until a device was in error for a while."""
    devices = [Device(index) for index in range(min(pynvml.nvmlDeviceGetCount(), MAX_GPUS))]
    if not devices:
        say(Gone("NVML shows no GPU", absent=True))
        sys.exit(0)
    events = optional(pynvml.nvmlEventSetCreate)
    opened_at = time.monotonic()
    while True:
        readings = [device.read(events) for device in devices]
        say(Seen([reading for reading in readings if reading is not None]))
        unwell = any(reading is not None and reading.error for reading in readings)
        if unwell and time.monotonic() - opened_at >= REOPEN_S:
            return
        wait(events, every_s, devices)


def wait(events: Any, every_s: float, devices: list[Device]) -> None:
    """Until the next reading is due; an error that the driver reports is said, and ends it."""
    until = time.monotonic() + every_s
    if events is not None:
        with suppress(pynvml.NVMLError):  # its time is over, mostly
            event = pynvml.nvmlEventSetWait_v2(events, int(every_s * 1000))
            if event.eventType == pynvml.nvmlEventTypeXidCriticalError:
                address = ctypes.cast(event.device, ctypes.c_void_p).value
                uuid = next((d.uuid for d in devices if d.address == address), "")
                say(XidEvent(uuid, int(event.eventData)))
                until = time.monotonic() + EVENT_PAUSE_S
    time.sleep(max(0.0, until - time.monotonic()))


def main() -> None:
    """Until nobody reads."""
    every_s = float(sys.argv[1])
    try:
        while True:
            pynvml.nvmlInit()
            session(every_s)
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        say(Gone(words(error), absent=error.value in _ABSENT))
    except Exception as error:  # there is nobody else whom it could tell
        say(Gone(f"its reader failed: {error!r}"[:MAX_WORDS_CHARS]))


if __name__ == "__main__":
    main()
