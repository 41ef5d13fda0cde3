"""Processes that end when a test wants them to: forked from one that has imported the library, so each begins at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pytest

_ROOT = Path(__file__).parents[2]

_PROGRAM = """
import json, os, sys
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.hub import publish_folder, resolve_folder
print("ready", flush=True)
for line in sys.stdin:
    name, arguments, options = json.loads(line)
    child = os.fork()
    if not child:
        code = 1
        try:
            {"push": publish_folder, "load": resolve_folder}[name](*arguments, **options)
            code = 0
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Forks:
    """Runs `publish_folder` or `resolve_folder` in a process of its own, again and again."""

    def __init__(self, **environment: str) -> None:
        self._environment = {**os.environ, "PYTHONWARNINGS": "ignore", **environment}

    def __enter__(self) -> Forks:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            cwd=_ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._line() == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, name: str, *arguments: str, kill_after: float | None = None, **options: object) -> bool:
        """Run one; kill it after some seconds, if it has not ended before. Returns whether it ended by itself, well."""
        assert self._process.stdin is not None
        print(json.dumps([name, arguments, options]), file=self._process.stdin, flush=True)
        child = int(self._line())
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):  # it has ended
                os.kill(child, signal.SIGKILL)
        return int(self._line()) == 0

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


FULL_DISK = """
import sys
from gradiend_hub.errors import GradiendError
from gradiend_hub.hub import publish_folder, resolve_folder
try:
    {"push": publish_folder, "load": resolve_folder}[sys.argv[1]](*sys.argv[2:])
except GradiendError as error:
    print(f"{type(error).__name__}: {error}")
else:
    print("done")
"""


def on_full_disk(disk: Path, kilobytes: int, program: str, *arguments: str, **environment: str) -> str:
    """Run a program whose cache and temporary folder lie on a disk of this size; what it prints.

    The disk is a file system in memory that no other process sees, mounted at the folder `disk`.
    """
    disk.mkdir(exist_ok=True)
    mount = 'mount -t tmpfs -o size="$1"k none "$2" && shift 2 && exec "$@"'
    command = ["unshare", "-Urm", "sh", "-c", mount, "sh", str(kilobytes), str(disk)]
    places = {"HF_HOME": str(disk / "home"), "TMPDIR": str(disk), "PYTHONWARNINGS": "ignore"}
    found = subprocess.run(
        [*command, sys.executable, "-c", program, *arguments],
        cwd=_ROOT,
        env={**os.environ, **places, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if found.returncode and not found.stdout and ("unshare" in found.stderr or "mount" in found.stderr):
        pytest.skip(f"no disk can be mounted here: {found.stderr.strip()[:200]}")
    assert found.returncode == 0, found.stderr
    return found.stdout
