"""Runs that are killed at a moment and go on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.support import PATIENCE, ROOT, TinyRun

Moment = Callable[[Path], bool]


def start(tiny: TinyRun, output: Path, *more: str) -> subprocess.Popen[bytes]:
    """Begin a run in a process of its own."""
    command = tiny.command("run", str(tiny.write()), "--output", str(output), "--json", *more)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True
    )


def finish(process: subprocess.Popen[bytes], timeout: float = PATIENCE) -> None:
    """Wait for a run that has to end well."""
    _, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors.decode()


def kill_when(
    process: subprocess.Popen[bytes], output: Path, moment: Moment, timeout: float = PATIENCE
) -> None:
    """`kill -9` as soon as the output shows the moment, which must come before the end."""
    deadline = time.monotonic() + timeout
    try:
        while not moment(output):
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    assert not (output / "result.json").exists(), "it was over before it could be killed"
