"""Errors that a user can cause, as one line that says where, what and what to do about it.

Raise `UserError` for anything wrong in input; the command line prints it and exits with code 2.
"""

from __future__ import annotations

import difflib
import errno
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from opmix_ray.harmless import in_line, shown, visible

LONGEST_VALUE = 80  # characters of a value in a message
LONGEST_PATH = 500  # the end of a path tells the most
GO_ON = "the same command with --resume goes on from the last checkpoint"
_GONE = {"LocalRayletDiedError", "NodeDiedError", "OwnerDiedError", "RaySystemError", "RpcError"}  # of Ray
_places: list[Path] = []  # where the command writes


class UserError(ValueError):
    """Something in a file, a key or a value that the user can mend.

    Args:
        problem: what is wrong, in words.
        file: the file that holds it, if any.
        key: dotted key inside the file or the name of the option.
        value: the offending value; long values are shortened, paths much later than others.
        remedy: what to do.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        key: str | None = None,
        value: Any = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = None if file is None else str(file)
        self.key = key
        self.value = value
        self.remedy = remedy
        super().__init__(self._line())

    def __reduce__(self) -> tuple[Any, ...]:  # travels through Ray unharmed
        return _rebuild, (self.problem, self.file, self.key, self.value, self.remedy)

    def within(self, file: object) -> UserError:
        """The same error, naming `file` where it names a configuration key but no file yet."""
        if self.file is not None or self.key is None or self.key.startswith("--"):
            return self
        return UserError(self.problem, file=file, key=self.key, value=self.value, remedy=self.remedy)

    def _line(self) -> str:
        place = ": ".join(part for part in (self.file, self.key) if part)
        if self.value is not None:
            value = shown(self.value, self.key or "")
            most = LONGEST_PATH if "/" in value else LONGEST_VALUE
            value = value if len(value) <= most else value[: most - 3] + "..."
            place = f"{place} = {value}" if place else value
        line = f"{place}: {self.problem}" if place else self.problem
        if self.remedy:
            line = f"{line}; {self.remedy}"
        return visible(in_line(" ".join(line.split())))


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy that names the nearest known name and all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean `{close[0]}`? " if close else ""
    return f"{hint}known: {', '.join(names)}"


def _rebuild(problem: str, file: str | None, key: str | None, value: Any, remedy: str | None) -> UserError:
    return UserError(problem, file=file, key=key, value=value, remedy=remedy)


class UserErrors(UserError):
    """Several user errors found in one go; prints one line each."""

    def __init__(self, errors: list[UserError]) -> None:
        self.errors = errors
        ValueError.__init__(self, "\n".join(str(error) for error in errors))

    def within(self, file: object) -> UserErrors:
        """See `UserError.within`."""
        return UserErrors([error.within(file) for error in self.errors])

    def __reduce__(self) -> tuple[Any, ...]:
        return UserErrors, (self.errors,)


def user_errors(error: BaseException) -> list[UserError]:
    """The user's errors inside an exception: itself, or what Ray and others have wrapped; empty if there is none.

    A full disk counts as the user's wherever it shows, and so does one that may only be read.
    """
    for current, wrapped in _inside(error):
        if isinstance(current, UserError) and not wrapped:
            return current.errors if isinstance(current, UserErrors) else [current]
        if isinstance(current, OSError) and current.errno in (errno.ENOSPC, errno.EDQUOT):
            return [disk_full(current.filename or _path_in(str(current)))]
        if isinstance(current, OSError) and current.errno == errno.EROFS:
            return [read_only(current.filename or _path_in(str(current)))]
        if isinstance(current, PermissionError) and _is_ours(current.filename):
            return [read_only(current.filename, "permission denied")]
    text = str(error)
    if "No space left on device" in text:
        return [disk_full(_path_in(text, "No space left on device"))]
    if "Read-only file system" in text:
        return [read_only(_path_in(text, "Read-only file system"))]
    return []


def ray_errors(error: BaseException) -> list[UserError]:
    """What Ray itself could not do, where it is neither the user's error nor ours; empty if it is anything else."""
    for current, _ in _inside(error):
        kind, text = type(current), str(current)
        if not kind.__module__.startswith("ray."):
            continue
        if kind.__name__ == "OutOfMemoryError" or "running low on memory" in text:
            return [
                UserError(
                    "a worker was ended by Ray's memory monitor, because its machine was running out of memory",
                    remedy="lower train.micro_batch_size, search.evaluators or the number of workers on a machine; "
                    + GO_ON,
                )
            ]
        if kind.__name__ in _GONE:
            return [
                UserError(
                    f"Ray went away under the run ({kind.__name__}: {first_line(current)})", remedy=GO_ON
                )
            ]
    return []


def _inside(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """An exception and all that it wraps; and whether each has its own cause, whose class Ray gave it too."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        # Ray gives a task's error the class of its cause, but with the whole traceback as its text.
        inner = [getattr(current, "cause", None), current.__cause__, current.__context__]
        failures = getattr(current, "worker_failures", None)
        inner += list(failures.values()) if isinstance(failures, dict) else []
        yield current, isinstance(inner[0], UserError)
        waiting += [part for part in inner if isinstance(part, BaseException)]


def first_line(error: BaseException) -> str:
    """What a foreign error says, in one line: the first of its text that is not blank, else its type."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def write_to(*places: object) -> None:
    """Note where a command writes, to name the full one of them where an error does not say which it is."""
    _places[:] = [Path(str(place)).absolute() for place in places]


def _is_ours(file: object) -> bool:
    """Whether a file lies where the command writes."""
    return isinstance(file, str) and any(place in Path(file).absolute().parents for place in _places)


def read_only(file: object = None, why: str = "the file system is read-only") -> UserError:
    """The error for a place that may not be written to any more."""
    return UserError(
        f"cannot be written: {why}",
        file=file or (_places[0] if _places else None),
        remedy="make it writable and run again with --resume; nothing before the last checkpoint is lost",
    )


def _path_in(text: str, about: str = "") -> str | None:
    """The path in quotes on the line of a foreign error that says what is wrong."""
    line = next((line for line in text.splitlines() if about in line), "")
    found = re.findall(r"[\"'](/[^\"'\n]+)[\"']", line)
    return str(found[-1]) if found else None


def _fullest() -> Path:
    """Of the places that are written to, the one with the least room."""
    temporary = Path(tempfile.gettempdir())
    found = {place: _free(place) for place in (*_places, temporary)}
    return min(found, key=lambda place: found[place])


def _free(place: Path) -> int:
    there = next((each for each in (place, *place.parents) if each.exists()), Path("/"))
    return shutil.disk_usage(there).free


def disk_full(file: object = None) -> UserError:
    """The error for a disk without space."""
    return UserError(
        "cannot be written: no space left on the disk",
        file=file or _fullest(),
        remedy="free some space and run again with --resume; nothing before the last checkpoint is lost",
    )
