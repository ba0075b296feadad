"""One process per output directory: a lock that the system drops when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from opmix_ray.errors import UserError
from opmix_ray.output.state import LOCK
from opmix_ray.storage import Storage


@contextlib.contextmanager
def locked(storage: Storage) -> Iterator[None]:
    """Hold a local output directory for the time of a `with`; object stores are not locked.

    Raises:
        UserError: another process holds it, or the directory cannot be made.
    """
    if not storage.is_local:
        yield
        return
    directory = Path(storage.uri)
    new, unlocked = not directory.exists(), not (directory / LOCK).exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / LOCK, os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise UserError(
            f"cannot be made: {error.strerror}",
            file=storage.uri,
            key="output",
            remedy="name another --output",
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another opmix process is writing here",
                file=storage.uri,
                key="output",
                remedy="wait for it or stop it",
            ) from None
        except OSError:  # a file system without locks: two runs in one directory are the user's own care
            pass
        try:
            yield
        except UserError:  # leave a directory that was refused as it was
            if unlocked:
                (directory / LOCK).unlink(missing_ok=True)
            if new:
                with contextlib.suppress(OSError):
                    directory.rmdir()
            raise
    finally:
        os.close(handle)


def is_held(storage: Storage) -> bool | None:
    """Whether a process is writing to an output; None where that cannot be known (an object store, no locks)."""
    if not storage.is_local:
        return None
    lock = Path(storage.uri) / LOCK
    if not lock.exists():  # a copy of an output, or a run in its first moment
        return False
    handle = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        return False
    finally:
        os.close(handle)
