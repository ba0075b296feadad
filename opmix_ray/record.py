"""JSON that must have a certain shape: read into a dataclass or a typed mapping, or refused in one line.

state = checked(RunState, storage.read_json("state.json"), file="runs/demo/state.json")
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from opmix_ray.errors import UserError
from opmix_ray.storage import Storage

T = TypeVar("T")
REMEDY = "restore the file, or use --overwrite to begin again"


def checked(kind: type[T], value: Any, *, file: object, remedy: str = REMEDY) -> T:
    """A JSON value as what it should be; numbers are not made of text, nor text of numbers.

    Args:
        kind: a dataclass, a TypedDict or a type such as `dict[str, float]`.
        value: as `json.loads` gives it.
        file: that it was read from, for the error.
        remedy: what to do if it has another shape.

    Raises:
        UserError: names the file and what in it is wrong.
    """
    try:
        # by way of JSON, where a mapping may become a dataclass though nothing else is converted
        return _adapter(cast(Any, kind)).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = f"holds something else than it should ({f'{place}: ' if place else ''}{first['msg']})"
        raise UserError(problem, file=file, remedy=remedy) from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"holds something else than it should ({error})", file=file, remedy=remedy) from None


def read_record(storage: Storage, name: str, kind: type[T], *, remedy: str = REMEDY) -> T:
    """A JSON file of a run's output; see `checked`."""
    return checked(kind, storage.read_json(name), file=storage.path(name), remedy=remedy)


def read_records(storage: Storage, name: str, kind: type[T], *, remedy: str = REMEDY) -> list[T]:
    """The complete lines of a file, each a JSON value; empty where there is no file."""
    found = []
    for number, line in enumerate(storage.lines(name), start=1):
        file = f"{storage.path(name)}: line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError("is not valid JSON", file=file, remedy=remedy) from None
        found.append(checked(kind, value, file=file, remedy=remedy))
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
