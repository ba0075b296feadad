"""Where the files of a Ray of our own lie: Ray's own choice, or a shorter path where its sockets would not fit.

A socket's path has at most 107 bytes on Linux. Ray's lie in `<place>/session_<time>_<pid>/sockets`, where `<place>` is
`ray` inside RAY_TMPDIR, TMPDIR or /tmp; batch systems set TMPDIR to long paths.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from opmix_ray.errors import UserError

LONGEST = 107  # bytes of a socket's path
_INSIDE = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


def default_place() -> Path:
    """Where Ray puts its files unless it is told."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"


def fits(place: Path) -> bool:
    """Whether sockets inside have paths that are short enough."""
    return len(os.fsencode(str(place.absolute()) + _INSIDE)) <= LONGEST


def ray_place() -> Path | None:
    """The directory to give to Ray; None: its own choice fits.

    Raises:
        UserError: it does not fit, and there is no short directory that may be written to.
    """
    default = default_place()
    if fits(default):
        return None
    for name in _SHORT:
        place = Path(name) / f"ray-{os.getuid()}"
        if fits(place) and os.access(place if place.exists() else name, os.W_OK):
            return place
    raise UserError(
        f"is too long for Ray, whose sockets' paths have at most {LONGEST} bytes, and {', '.join(_SHORT)} are closed",
        file=default,
        key="TMPDIR",
        remedy=f"set RAY_TMPDIR to a directory of at most {LONGEST - len(_INSIDE) - len('/ray')} bytes",
    )


def scratch() -> list[Path]:
    """Directories outside the output that a run writes to."""
    return [Path(tempfile.gettempdir()), ray_place() or default_place()]
