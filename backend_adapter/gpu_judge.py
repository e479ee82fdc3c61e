"""The judgement of the GPUs: which cannot be used, and which error has killed what ran on one.

Events are method calls that carry ``now`` (``time.monotonic()`` seconds); they return commands.

Laws:

1. A fault lasts exactly as long as its cause: as NVML calls a device lost, in need of a reset, or
   does not show one that it has shown. After an Xid that leaves a device unusable it lasts until
   the driver itself says that nothing is to be done; where it does not say such things, for good.
2. An error that kills what runs on a device, or the end of a fault that did, is one ``Hit``. What
   is seen of the same error in two ways within ``SAME_ERROR_S`` is one error.
3. Uncorrectable errors count from the first reading on: what was there before is no news.
4. A text begins with the device's index and name and ends with its own words.

It must not know who reads NVML, nor what a fault means for the model server (``gpu_gate.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from backend_adapter.gpu_words import (
    DEADLY_XIDS,
    MAX_GPUS,
    NO_RECOVERY,
    RECOVERIES,
    UNUSABLE_XIDS,
    Hit,
    Note,
    Reading,
)

#: The counter of errors and the driver's event speak of the same error.
SAME_ERROR_S = 15.0
#: The driver may need a moment before its recovery action tells of an Xid.
SETTLE_S = 5.0


class _Gpu(msgspec.Struct):
    """What is known of one device."""

    index: int
    name: str
    fault: str = ""  #: as the latest reading says
    fatal: bool = False  #: and what ran on it is dead
    broken: str = ""  #: by an Xid
    broken_at: float = 0.0
    ecc: int = -1
    hit_at: float | None = None
    notes: list[str] = []

    @property
    def title(self) -> str:
        return f"GPU {self.index} ({self.name})" if self.name else f"GPU {self.index}"


class GpuJudge:
    """Every device that was ever seen, by its uuid."""

    def __init__(self) -> None:
        self._gpus: dict[str, _Gpu] = {}

    @property
    def fault(self) -> str:
        """What is wrong now, for people; "" when nothing is."""
        return "; ".join(
            f"{gpu.title}: {words}"
            for gpu in self._gpus.values()
            for words in dict.fromkeys((gpu.broken, gpu.fault))
            if words
        )

    def unwell(self, readings: Sequence[Reading]) -> list[tuple[int, str]]:
        """Index and name of each device that cannot be used; one that is not among ``readings`` any
        more has the index that it had, unless another has it now.
        """
        uuids = {reading.uuid for reading in readings}
        indexes = {reading.index: self._key(reading, uuids) for reading in readings}
        return [
            (gpu.index, gpu.name)
            for key, gpu in self._gpus.items()
            if (gpu.broken or gpu.fault) and indexes.get(gpu.index, key) == key
        ]

    def seen(self, readings: Sequence[Reading], now: float) -> list[Hit | Note]:
        """Every device was looked at."""
        commands: list[Hit | Note] = []
        uuids = {reading.uuid for reading in readings}
        present = set()
        for reading in readings[:MAX_GPUS]:
            key = self._key(reading, uuids)
            gpu = self._gpus.get(key)
            if gpu is None:
                gpu = self._gpus[key] = _Gpu(reading.index, reading.name)
            present.add(key)
            commands += self._read(gpu, reading, now)
        for key, gpu in list(self._gpus.items()):
            if key in present:
                continue
            if key.startswith("index "):
                del self._gpus[key]  # it has a uuid now, or never had a thing to say
            else:
                gpu.fault, gpu.fatal = "it is not there any more", True
        return commands

    def xid(self, uuid: str, code: int, now: float) -> list[Hit | Note]:
        """The driver reported an error."""
        gpu = self._gpus.get(uuid)
        if gpu is None and len(self._gpus) == 1:
            (gpu,) = self._gpus.values()  # whose else
        if gpu is None:
            return [Note(f"a GPU that is not known: Xid {code}")]
        if code in UNUSABLE_XIDS:
            gpu.broken, gpu.broken_at = f"Xid {code}: {UNUSABLE_XIDS[code]}", now
            gpu.hit_at = now
            return []
        if code in DEADLY_XIDS:
            return list(self._hit(gpu, f"Xid {code}: {DEADLY_XIDS[code]}", now))
        return [Note(f"{gpu.title}: Xid {code}")]

    def _key(self, reading: Reading, uuids: set[str]) -> str:
        """Whose reading it is: a device that is lost may not tell its uuid."""
        if reading.uuid:
            return reading.uuid
        for key, gpu in self._gpus.items():
            if gpu.index == reading.index and key not in uuids:
                return key
        return f"index {reading.index}"

    def _read(self, gpu: _Gpu, reading: Reading, now: float) -> Iterator[Hit | Note]:
        gpu.index, gpu.name = reading.index, reading.name or gpu.name
        was_dead = gpu.fatal
        must = RECOVERIES.get(reading.recovery, "")
        gpu.fault = reading.error or must
        gpu.fatal = bool(must) or (reading.fatal and bool(reading.error))
        healed = not gpu.fault and reading.recovery == NO_RECOVERY
        if gpu.broken and healed and now - gpu.broken_at >= SETTLE_S:
            gpu.broken, was_dead = "", True
        if was_dead and not gpu.fault and not gpu.broken:
            gpu.hit_at = None
            yield from self._hit(gpu, "it is back, and what ran on it is dead", now)
        if reading.ecc >= 0:
            new = reading.ecc - gpu.ecc if gpu.ecc >= 0 else 0
            gpu.ecc = reading.ecc
            if new > 0:
                error = "error" if new == 1 else "errors"
                yield from self._hit(gpu, f"{new} uncorrectable ECC {error}", now)
        for note in reading.notes:
            if note not in gpu.notes:
                yield Note(f"{gpu.title}: {note}")
        gpu.notes = reading.notes

    def _hit(self, gpu: _Gpu, words: str, now: float) -> Iterator[Hit]:
        if gpu.hit_at is None or now - gpu.hit_at >= SAME_ERROR_S:
            gpu.hit_at = now
            yield Hit(f"{gpu.title}: {words}")
