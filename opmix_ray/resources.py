"""Files that ship with the package: search spaces, examples and their data."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """A directory that ships: inside the installed package, else beside it in a checkout."""
    installed = _HERE / "_shipped" / name
    return installed if installed.exists() else _HERE.parent / name
