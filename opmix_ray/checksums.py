"""Checksums of a directory's files, written beside them: what is read later is what was written.

    seal(directory)               # when all files are there
    fault(directory)              # None, or "optimizer.pt is damaged"
    check(directory)              # the same as an error

A part that was sealed on its own is listed by its checksums alone and looked into as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from opmix_ray.errors import UserError

SUMS = "checksums.json"


def seal(directory: Path | str) -> None:
    """Write `checksums.json`: SHA-256 of every file by its name; links are followed."""
    directory = Path(directory)
    sums = {name: file_digest(directory / name) for name in sorted(_files(directory))}
    (directory / SUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def fault(directory: Path | str) -> str | None:
    """What is wrong with a sealed directory, in words; None: every file is what it was. Others may be new."""
    directory = Path(directory)
    if not directory.is_dir():
        return "is gone"
    try:
        sums = json.loads((directory / SUMS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"has no {SUMS}"
    except (OSError, ValueError):
        sums = None
    if not isinstance(sums, dict) or not sums:
        return f"has a damaged {SUMS}"
    for name, digest in sums.items():
        file = directory / name
        try:
            same = file_digest(file) == digest
        except FileNotFoundError:
            return f"lacks {name}"
        except OSError as error:
            return f"cannot be read: {name}: {error.strerror}"
        if not same:
            return f"has a damaged {name}"
        if file.name == SUMS:
            inside = fault(file.parent)
            if inside is not None:
                return f"{inside} in {name.rpartition('/')[0]}"
    return None


def check(directory: Path | str, *, remedy: str, shown: object = None) -> None:
    """Refuse a sealed directory that is not what it was.

    Args:
        directory: local.
        remedy: what to do.
        shown: its name for a person; none: the directory.

    Raises:
        UserError: see `fault`.
    """
    why = fault(directory)
    if why is not None:
        raise UserError(why, file=shown or directory, remedy=remedy)


def is_sealed(directory: Path | str) -> bool:
    """Whether a directory has checksums."""
    return (Path(directory) / SUMS).is_file()


def _files(directory: Path) -> Iterator[str]:
    """Names of all files but the directory's own checksums; of a sealed part its checksums alone."""
    for place, folders, names in os.walk(directory, followlinks=True):
        here = Path(place)
        if here != directory and SUMS in names:
            names, folders[:] = [SUMS], []
        for name in names:
            if here != directory or name != SUMS:
                yield (here / name).relative_to(directory).as_posix()


def file_digest(file: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
