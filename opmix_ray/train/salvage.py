"""What can be kept of a segment whose notes were cut off, by a full disk or a crash in the wrong moment.

Ray Train keeps a list of its checkpoints in a file that it writes in place. Where that file is half there, Train
refuses to go on; the checkpoints beside it are still good, as far as they are whole.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from opmix_ray.storage import Storage
from opmix_ray.train.checkpoint import is_whole, read_state

NOTES = "checkpoint_manager_snapshot.json"  # Ray Train's


def salvage(storage: Storage, directory: str) -> str | None:
    """Make a segment's directory fit to go on in; to be called while no worker runs.

    Checkpoints that were never finished are removed. If Ray's notes are broken, the newest whole checkpoint is put
    beside the directory, which is then cleared. An object store has whole objects only, so there notes do not break.

    Args:
        storage: the run's output.
        directory: of the segment, inside the output.

    Returns:
        The checkpoint inside the output that was saved, now or before; None if none was.
    """
    if not storage.is_local:
        _drop_unfinished(storage, directory)
        return None
    base = Path(storage.path(directory))
    saved = base.with_name(f"{base.name}.saved")
    checkpoints = [path for path in base.glob("checkpoint_*") if path.is_dir()]
    known = _notes(base / NOTES)
    if known is not None:
        for path in checkpoints:
            if path.name not in known:
                shutil.rmtree(path)
    elif base.exists():
        whole = [path for path in checkpoints if is_whole(path)]
        if whole:
            newest = max(whole, key=lambda path: (read_state(path).step, path.name))
            shutil.rmtree(saved, ignore_errors=True)
            newest.rename(saved)
        shutil.rmtree(base)
    return f"{directory}.saved" if saved.exists() else None


def _drop_unfinished(storage: Storage, directory: str) -> None:
    """Remove what a crash left of checkpoints in an object store that Ray's notes do not know."""
    notes = f"{directory}/{NOTES}"
    known = storage.read_text(notes) if storage.exists(notes) else ""
    for name in storage.names(directory):
        if name.startswith("checkpoint_") and name != NOTES and name not in known:
            storage.delete(f"{directory}/{name}")


def _notes(file: Path) -> str | None:
    """The text of Ray's notes; None if they are broken, or if there are none."""
    try:
        text = file.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError):
        return None
    return text
