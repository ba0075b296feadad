"""What other packages bring along: mixing laws, objectives, strategies and data sources, found by entry point.

# pyproject.toml of the other package
[project.entry-points."opmix_ray.laws"]
nearest = "my_package:NearestLaw"

find("laws", "nearest")     # the object, imported now; None where no package brings it
names("laws")               # what there is, without importing it
"""

from __future__ import annotations

import traceback
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from opmix_ray.errors import UserError

Kind = Literal["laws", "objectives", "strategies", "sources"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def names(kind: Kind) -> list[str]:
    """Names that installed packages register for one kind, sorted; nothing is imported.

    Raises:
        UserError: two packages register the same name.
    """
    return sorted(_points(kind))


def find(kind: Kind, name: str) -> Any:
    """What a package registers under a name; None where there is none of that name.

    Raises:
        UserError: two packages register the name, or it cannot be imported.
    """
    point = _points(kind).get(name)
    return None if point is None else _load(point)


def code(kind: Kind, name: str) -> list[Path]:
    """The Python files of the package that registers a name, sorted; none where no package does.

    Raises:
        UserError: two packages register the name.
    """
    point = _points(kind).get(name)
    spec = None if point is None else find_spec(point.module.partition(".")[0])
    if spec is None:
        return []
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    alone = [Path(spec.origin)] if spec.origin and not folders else []
    return sorted([*alone, *(file for folder in folders for file in folder.rglob("*.py"))])


def load_all(kind: Kind) -> dict[str, Any]:
    """Everything that packages register for one kind, imported."""
    return {name: _load(point) for name, point in _points(kind).items()}


@cache
def _points(kind: Kind) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"opmix_ray.{kind}"):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise UserError(
                f"is registered twice: {_package(other)} and {_package(point)}",
                key=f"opmix_ray.{kind}",
                value=point.name,
                remedy="uninstall one of the two packages",
            )
    return found


@cache
def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # a package's code can fail in any way
        said = traceback.format_exception_only(error)[-1].strip()
        raise UserError(
            f"of {_package(point)} cannot be imported: {said}",
            key=point.group,
            value=f"{point.name} ({point.value})",
            remedy="mend or uninstall that package",
        ) from None


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
