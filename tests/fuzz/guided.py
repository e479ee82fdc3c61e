"""The engine that looks where an input leads (atheris: libFuzzer for Python), for the same targets.

It is optional: ``pip install -e '.[fuzz]'``, ``python -m tests.fuzz TARGET --engine atheris``.
Our own packages are instrumented, so an input that reaches new code is kept and changed further;
the seeds and words of the target are its first inputs and its dictionary.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

OURS = ["ingress", "backend_adapter", "reporter", "supervisor"]
#: Longest input: about what the mutating engine makes.
MOST_BYTES = 8192


#: Longer ones are no words for libFuzzer.
MOST_WORD_BYTES = 64


def guided(name: str, inputs: int, seed: int, hang_s: float) -> int:
    """Run that many inputs in a process of their own, which prints the figures, and leave nothing
    of it behind.

    :param hang_s: seconds that one input may take.
    :return: exit status; 1: a finding, the input is on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        argv = [
            sys.executable,
            "-m",
            __name__,
            name,
            str(inputs),
            str(seed),
            str(hang_s),
            directory,
        ]
        return subprocess.run(argv, env=os.environ | {"TMPDIR": directory}).returncode


def _fuzz(name: str, inputs: int, seed: int, hang_s: float, directory: Path) -> NoReturn:
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=OURS):
        targets = importlib.import_module("tests.fuzz.targets")
    target = targets.targets()[name]
    began = time.monotonic()
    done = taken = 0
    slowest_s = 0.0

    def find(data: bytes, what: str) -> NoReturn:
        print(f"{name}, atheris, seed {seed}, input {done}: {what}\n{data!r}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)

    def one(data: bytes) -> None:
        nonlocal done, taken, slowest_s
        at = time.process_time()
        try:
            taken += target.take(data)
        except BaseException as error:
            find(data, f"{type(error).__name__}: {error}")
        took_s = time.process_time() - at
        if took_s > hang_s:
            find(data, f"took {took_s:.1f} s")
        slowest_s = max(slowest_s, took_s)
        done += 1
        if done >= inputs:
            figures = {
                "target": name,
                "engine": "atheris",
                "seed": seed,
                "inputs": done,
                "taken": taken,
                "refused": done - taken,
                "slowest_ms": round(slowest_s * 1000, 2),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "seconds": round(time.monotonic() - began, 1),
            }
            print(json.dumps(figures), flush=True)
            os._exit(0)  # libFuzzer does not return

    corpus = directory / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(data)
    words = [word for word in target.words if len(word) <= MOST_WORD_BYTES]
    (directory / "words").write_text("".join(f'"{_escaped(word)}"\n' for word in words))
    flags = [
        f"-seed={seed}", f"-dict={directory}/words", f"-max_len={MOST_BYTES}",
        "-rss_limit_mb=2048", f"-artifact_prefix={directory}/", "-verbosity=0",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one)
    atheris.Fuzz()
    raise AssertionError("libFuzzer came back")


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    _fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
