"""Words of the GPU watch: what the reader of NVML says, and what follows from it.

The first three cross a pipe as lines of JSON. A leaf: frozen data, times in ``time.monotonic()``
seconds. Sources: NVIDIA's catalogue of Xid errors, and the recovery actions of NVML
(``nvmlDeviceGpuRecoveryAction_t``).
"""

from __future__ import annotations

import msgspec

#: GPUs that are looked at, and characters of a device's name and of an error that are kept.
MAX_GPUS = 32
MAX_NAME_CHARS = 64
MAX_WORDS_CHARS = 200

#: After these the device is not to be used until somebody resets it.
UNUSABLE_XIDS = {
    46: "GPU stopped processing",
    62: "internal micro-controller halt",
    64: "row remapper or page retirement failure",
    79: "GPU has fallen off the bus",
    95: "uncontained ECC error",
    110: "security fault",
    119: "GSP RPC timeout",
    120: "GSP error",
    140: "unrecovered ECC error",
    143: "GPU initialization error",
}
#: What ran on the device at that moment is dead; the next process may use it.
DEADLY_XIDS = {
    48: "double-bit ECC error",
    74: "NVLink error",
    94: "contained ECC error",
}
#: ``Reading.recovery``: nothing is to be done, said by the driver itself.
NO_RECOVERY = 0
#: ``Reading.recovery`` of a device that is not to be used until then. (The other actions leave it
#: usable for now.)
RECOVERIES = {
    1: "it must be reset before it can be used again",
    2: "the machine must be rebooted before it can be used again",
    6: "its bus must be reset before it can be used again",
    7: "the machine must be rebooted before it can be used again",
}

# ------------------------------------------------------------------------- reader → watch


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One device at one moment."""

    index: int
    name: str = ""
    uuid: str = ""  #: "": it would not say
    error: str = ""  #: NVML's own words; "": it answers
    fatal: bool = False  #: with that error nothing that ran on it lives (lost, reset required)
    ecc: int = -1  #: uncorrectable errors since its driver was loaded; -1: it does not count them
    recovery: int = -1  #: what the driver says has to be done; -1: it does not say
    notes: list[str] = []  #: what is not well and does not hinder work
    used_bytes: int = 0
    total_bytes: int = 0  #: 0: it does not say
    utilization: float = -1.0  #: 0 to 1; -1: it does not say


class Seen(msgspec.Struct, frozen=True, tag="seen"):
    """Every device."""

    gpus: list[Reading]


class XidEvent(msgspec.Struct, frozen=True, tag="xid"):
    """The driver reported an error of a device."""

    uuid: str
    code: int


class Gone(msgspec.Struct, frozen=True, tag="gone"):
    """NVML cannot be asked; the reader ends. ``absent``: there is nothing to ask about."""

    text: str
    absent: bool = False


Said = Seen | XidEvent | Gone

# --------------------------------------------------------------------------- commands


class StartReader(msgspec.Struct, frozen=True):
    """Start the process that asks NVML; its end is told by ``ended``."""


class KillReader(msgspec.Struct, frozen=True):
    """SIGKILL to it; if the kernel does not let it die, nothing follows."""


class Hit(msgspec.Struct, frozen=True):
    """What ran on a GPU is dead: the model server must be started again."""

    text: str


class Note(msgspec.Struct, frozen=True):
    """For the log."""

    text: str


ReaderCommand = StartReader | KillReader
