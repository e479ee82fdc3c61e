"""GPUs without a GPU: a libnvidia-ml.so.1 that says what a test tells it to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")
LIBRARY = "libnvidia-ml.so.1"


class FakeNvml:
    """The library in ``directory``, with ``count`` devices; skips where there is no C compiler.

    ``environ``: what makes a process use it. A device's name is "Fake H100", its uuid
    "GPU-fake-N". What can be set is listed in fake_nvml.c.
    """

    def __init__(self, directory: Path, count: int = 1) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler (cc, gcc) to make a library with")
        self._directory = directory / "fake-nvml"
        self._directory.mkdir()
        self._state = self._directory / "state"
        self._values = {"count": count}
        self.set()
        self.library = self._directory / LIBRARY
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(self.library), str(SOURCE)],
            check=True,
        )

    @property
    def environ(self) -> dict[str, str]:
        """Variables for the process that is to use it."""
        paths = filter(None, (str(self._directory), os.environ.get("LD_LIBRARY_PATH")))
        return {"FAKE_NVML": str(self._state), "LD_LIBRARY_PATH": os.pathsep.join(paths)}

    def set(self, **values: int) -> None:
        """``error_1=15``: the key ``error.1`` is 15 from now on."""
        self._values |= {key.replace("_", "."): value for key, value in values.items()}
        new = self._state.with_suffix(".new")
        new.write_text("".join(f"{key} {value}\n" for key, value in self._values.items()))
        new.replace(self._state)

    def xid(self, gpu: int, code: int) -> None:
        """The driver reports an error of a device."""
        serial = self._values.get("event", 0) + 1
        self.set(event=serial, event_gpu=gpu, event_xid=code)

    def hide(self) -> None:
        """The library is not there any more."""
        self.library.rename(self.library.with_suffix(".hidden"))

    def show(self) -> None:
        """It is there again."""
        self.library.with_suffix(".hidden").rename(self.library)
