"""Who may write into an output: one process at a time, the driver that came last and its workers.

    with locked(storage):                     # the system drops the lock when its holder dies
        token = raise_fence(storage)
        with writing(storage, token):         # a worker around a checkpoint, the driver around its state
            ...

A driver that is killed leaves workers that may train on for seconds. On a local file system they and the next driver
take turns by a lock on the fence's file. An object store has no locks, and two drivers may live there side by side: the
earlier one looks before whatever it writes, and the moment of looking counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from opmix_ray.errors import UserError
from opmix_ray.output.state import CONFIG, FENCE, LOCK, STATE
from opmix_ray.storage import Storage

_TOKEN = f"{FENCE}/token"
_FIRST = {CONFIG, STATE, LOCK, FENCE}  # what is written before anything is done


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
    new, before = not directory.exists(), _names(directory)
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
            begun = _names(directory) - before
            if not before and begun <= _FIRST:  # else something was done that could be lost
                shutil.rmtree(directory / FENCE, ignore_errors=True)
                for name in begun - {FENCE}:
                    (directory / name).unlink(missing_ok=True)
            elif LOCK in begun:
                (directory / LOCK).unlink(missing_ok=True)
            if new:
                with contextlib.suppress(OSError):
                    directory.rmdir()
            raise
    finally:
        os.close(handle)


def _names(directory: Path) -> set[str]:
    """Of what is in a directory; none where there is no directory that can be read."""
    try:
        return set(os.listdir(directory))
    except OSError:
        return set()


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


def raise_fence(storage: Storage) -> str:
    """Keep out whoever was allowed to write before, and wait until none of them is writing; returns the new token.

    In an object store `storage` itself, and what is inside it, writes nothing any more once another fence is raised.
    """
    token = uuid.uuid4().hex
    storage.before_write = None
    with _turn(storage, fcntl.LOCK_EX):
        storage.write_text(_TOKEN, token)
    _look_before_writing(storage, token)
    return token


def opened(uri: str, token: str | None) -> Storage:
    """An output again, for a part of its driver that is given the URI; it looks as the driver's own does.

    Args:
        uri: of the output.
        token: what `raise_fence` gave; None: there is no other writer.

    Raises:
        UserError: in an object store another driver has raised the fence since.
    """
    storage = Storage(uri)
    if token is not None:
        _look_before_writing(storage, token)
    if storage.before_write is not None:
        storage.before_write()
    return storage


def _look_before_writing(storage: Storage, token: str) -> None:
    if not storage.is_local:  # a directory is locked while its driver lives
        storage.before_write = partial(_check, storage, token)


@contextlib.contextmanager
def writing(storage: Storage, token: str) -> Iterator[None]:
    """Write for the time of a `with`, if the token's holder still may; the next driver waits meanwhile.

    Raises:
        UserError: another driver has raised the fence since.
    """
    with _turn(storage, fcntl.LOCK_SH):
        _check(storage, token)
        yield


def _check(storage: Storage, token: str) -> None:
    if not storage.exists(_TOKEN) or storage.read_text(_TOKEN) != token:
        raise UserError(
            "another opmix process has taken this output over",
            file=storage.uri,
            remedy="nothing: it goes on",
        )


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
