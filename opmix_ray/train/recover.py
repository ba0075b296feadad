"""What can be kept of a segment whose notes or checkpoints were cut off or damaged, by a full disk, a crash or a disk.

Ray Train keeps a list of its checkpoints in a file that it writes in place, and goes on from the last one. Where that
file is half there, or that checkpoint is not what was written, the newest checkpoint that is whole takes its place.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from opmix_ray.checksums import fault
from opmix_ray.errors import UserError
from opmix_ray.storage import Storage

NOTES = "checkpoint_manager_snapshot.json"  # Ray Train's
_LISTED = re.compile(r'"(checkpoint_\d[^"/]*)"')


def recover(storage: Storage, directory: str, say: Callable[[str], None] = lambda _: None) -> str | None:
    """Make a segment's directory fit to go on in; to be called while no worker runs.

    Checkpoints that were never finished are removed. If Ray's notes or the last checkpoint are damaged, the newest
    whole checkpoint is put beside the directory, which is then cleared.

    Args:
        storage: the run's output.
        directory: of the segment, inside the output.
        say: called with a line for each checkpoint that is damaged.

    Returns:
        The checkpoint inside the output that was saved, now or before; None if none was.
    """
    saved = f"{directory}.saved"
    notes = _notes(storage, f"{directory}/{NOTES}")
    there = [name for name in storage.names(directory) if _LISTED.fullmatch(f'"{name}"')]
    if notes is not None:
        for name in there:
            if name not in notes:
                storage.delete(f"{directory}/{name}")
        there = [name for name in there if name in notes]
    listed = sorted({*_LISTED.findall(notes or ""), *there})
    damaged = False
    for name in reversed(listed):
        why = checkpoint_fault(storage, f"{directory}/{name}")
        if why is None:
            if notes is None or damaged:
                _put_aside(storage, f"{directory}/{name}", saved)
            break
        if notes is not None or why not in ("is gone", "has no checksums.json"):  # else it was never finished
            say(f"checkpoint {storage.path(f'{directory}/{name}')} {why}; the one before it is used")
        damaged = True
    if (notes is None or damaged) and storage.exists(directory):
        storage.delete(directory)
    if storage.exists(saved):
        why = checkpoint_fault(storage, saved)
        if why is None:
            return saved
        say(f"checkpoint {storage.path(saved)} {why}; the one before it is used")
        storage.delete(saved)
    return None


def checkpoint_fault(storage: Storage, place: str) -> str | None:
    """What is wrong with a checkpoint inside a run's output, in words; None: it is what was written."""
    if not storage.exists(place):
        return "is gone"
    try:
        with storage.local(place) as directory:
            return fault(directory)
    except UserError as error:
        return error.problem


def _put_aside(storage: Storage, place: str, saved: str) -> None:
    storage.delete(saved)
    with storage.local(place) as directory:
        if storage.is_local:
            shutil.move(directory, Path(storage.path(saved)))
        else:
            storage.upload(directory, saved)


def _notes(storage: Storage, file: str) -> str | None:
    """The text of Ray's notes; None if they are broken, or if there are none."""
    try:
        text = storage.read_text(file)
        json.loads(text)
    except ValueError:  # a UserError is one
        return None
    return text
