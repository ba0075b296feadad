"""Who may write into an output: the driver that came last and its workers, not those of one before it.

    token = raise_fence(storage)          # the driver, when it has the lock
    with writing(storage, token):         # a worker around a checkpoint, the driver around its state
        ...

A driver that is killed leaves workers that may train on for seconds. On a local file system they and the next driver
take turns by a lock on the fence's file; an object store has no locks, so that there the moment of looking counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from opmix_ray.errors import UserError
from opmix_ray.output.state import FENCE
from opmix_ray.storage import Storage


def raise_fence(storage: Storage) -> str:
    """Keep out whoever was allowed to write before, and wait until none of them is writing; returns the new token."""
    token = uuid.uuid4().hex
    with _turn(storage, fcntl.LOCK_EX):
        storage.write_text(f"{FENCE}/token", token)
    return token


@contextlib.contextmanager
def writing(storage: Storage, token: str) -> Iterator[None]:
    """Write for the time of a `with`, if the token's holder still may; the next driver waits meanwhile.

    Raises:
        UserError: another driver has raised the fence since.
    """
    with _turn(storage, fcntl.LOCK_SH):
        place = f"{FENCE}/token"
        if not storage.exists(place) or storage.read_text(place) != token:
            raise UserError(
                "another opmix process has taken this output over",
                file=storage.uri,
                remedy="nothing: it goes on",
            )
        yield


@contextlib.contextmanager
def _turn(storage: Storage, kind: int) -> Iterator[None]:
    if not storage.is_local:
        yield
        return
    file = Path(storage.path(FENCE)) / "turn"
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_CREAT | os.O_RDWR)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)
