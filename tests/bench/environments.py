"""The environments that the worker and the public PyWorker run in: each has one of its own,
under ~/.cache/lighterman. What a developer has there besides (a coverage hook, the finder of a
checkout that may be edited) is loaded by each process, and would count as its memory. Needs a
package index.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

PEER = "vastai==1.9.1"
ROOT = Path(__file__).parents[2]
_PACKAGED = ("supervisor", "ingress", "backend_adapter", "reporter")
_METADATA = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE")


@cache
def peer_python() -> str:
    """The interpreter of PyWorker's environment, which is made where it is missing; "": it cannot
    be had.
    """
    try:
        return _python(PEER, PEER)
    except subprocess.CalledProcessError:
        print("measured without PyWorker", file=sys.stderr)
        return ""


@cache
def worker_python() -> str:
    """The interpreter of an environment that holds this checkout as it is now. SystemExit: it
    cannot be made.
    """
    made_of = f"{ROOT} {sys.version} {(ROOT / 'setup.cfg').read_text()}"
    name = f"worker-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
    try:
        with tempfile.TemporaryDirectory() as copy:  # setuptools leaves things where it builds
            for part in _PACKAGED:
                shutil.copytree(ROOT / part, Path(copy, part))
            for part in _METADATA:
                shutil.copy(ROOT / part, copy)
            python = _python(name, copy)
            _install(python, "--force-reinstall", "--no-deps", copy)
    except subprocess.CalledProcessError:
        raise SystemExit("the worker cannot be installed") from None
    return python


def _python(name: str, requirement: str) -> str:
    directory = Path.home() / ".cache" / "lighterman" / name
    python = str(directory / "bin" / "python")
    if not (directory / "complete").exists():
        print(f"making {directory}", file=sys.stderr)
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        _install(python, requirement)
        (directory / "complete").touch()
    return python


def _install(python: str, *what: str) -> None:
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *what]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        done.check_returncode()
