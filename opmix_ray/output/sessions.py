"""sessions.json: when, on which machine and by which command a run was worked on; an entry each time it was taken up.

session = Session(storage)
session.save()                # after every step of the plan: seconds so far
"""

from __future__ import annotations

import shlex
import socket
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opmix_ray.errors import UserError
from opmix_ray.secret import HIDDEN, in_text, is_secret
from opmix_ray.storage import Storage

SESSIONS = "sessions.json"


class Session:
    """This process's work on a run; what earlier ones wrote is kept.

    Args:
        storage: the run's output.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage, self._start = storage, time.monotonic()
        self._before = read_sessions(storage)
        self._entry = {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "command": command_line(sys.argv),
        }
        self.save()

    def save(self) -> None:
        """Write the file, with the wall seconds that have passed."""
        seconds = round(time.monotonic() - self._start, 1)
        self._storage.write_json(SESSIONS, [*self._before, {**self._entry, "seconds": seconds}])


def read_sessions(storage: Storage) -> list[dict[str, Any]]:
    """Every entry, in order; what cannot be read is left out, since nothing of a run depends on it."""
    try:
        found = storage.read_json(SESSIONS) if storage.exists(SESSIONS) else []
    except UserError:
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def command_line(arguments: Sequence[str]) -> str:
    """A command as one would type it, with secrets hidden: `opmix run mine.yaml --set watch.wandb.api_key=***`."""
    program, *rest = arguments or ["python"]
    return " ".join([Path(program).name, *(shlex.quote(_safe(word)) for word in rest)])


def _safe(word: str) -> str:
    key, mark, value = word.partition("=")
    if mark and value and is_secret(key.rpartition(".")[2].lstrip("-")):
        return f"{key}={HIDDEN}"
    return in_text(word)
