"""Errors that a user can cause, as one line that says where, what and what to do about it.

Raise `UserError` for anything wrong in input; the command line prints it and exits with code 2. From Python it is the
same error: a function under `@typed` refuses arguments that its hints do not allow.
"""

from __future__ import annotations

import difflib
import errno
import inspect
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

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


Whole = Annotated[int, 0]  # at least 0
Weight = Annotated[float, 0]
Share = Annotated[float, 0, 1]
ROUNDING = 1e-9  # by which a number may be outside of its range
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def typed(function: FunctionT, **unless_told: Any) -> FunctionT:
    """The same function, which refuses arguments that its hints do not allow; its errors name arguments, not options.

    Args:
        function: with hints.
        unless_told: arguments that it gets unless they are given.

    Numbers are finite and no text, text is no list, and arrays may be anything that holds numbers. `Annotated[int, 1]`
    is at least 1, `Annotated[float, 0, 1]` also at most 1.
    """
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        hints.update({} if hints else _hints(function))
        try:
            bound = signature.bind(*args, **{**unless_told, **kwargs})
        except TypeError as error:
            raise TypeError(f"{function.__qualname__}: {error}") from None
        try:
            for name in bound.arguments:
                bound.arguments[name] = _taken(bound.arguments[name], hints.get(name, Any), name)
        except UserError as error:
            remedy = f"see help(opmix_ray.{function.__qualname__})"
            raise UserError(error.problem, key=error.key, value=error.value, remedy=remedy) from None
        try:
            return function(*bound.args, **bound.kwargs)
        except UserError as error:
            own = [_of_argument(one, signature.parameters) for one in user_errors(error)]
            if all(one is None for one in own):
                raise
            named = [one or old for one, old in zip(own, user_errors(error), strict=True)]
            raise (UserErrors(named) if isinstance(error, UserErrors) else named[0]) from None

    return call  # type: ignore[return-value]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """What each argument may be; anything where the hint is imported for type checkers alone."""
    names = inspect.unwrap(function).__globals__
    found: dict[str, Any] = {}
    for name, hint in function.__annotations__.items():
        one = type("One", (), {"__annotations__": {name: hint}})
        try:
            found |= get_type_hints(one, globalns=names, include_extras=True)
        except NameError:
            found[name] = Any
    return found


def _of_argument(error: UserError, names: Iterable[str]) -> UserError | None:
    """An error that names an option of the command line as one that names the argument; None: it names none."""
    name = (error.key or "").lstrip("-").replace("-", "_").lower()
    if error.key == name or not (str(error.key).startswith("--") or name in names):
        return None
    return UserError(error.problem, file=error.file, key=name, value=error.value, remedy=error.remedy)


def _taken(value: Any, hint: Any, key: str) -> Any:
    """A value as its hint has it; a `UserError` where it is something else."""
    kind: Any = get_origin(hint) or hint
    inside = get_args(hint)
    if kind is Any:
        return value
    text = repr(value) if isinstance(value, str | NoneType) else value
    wrong = UserError(f"must be {_words(hint)}", key=key, value=text)
    if kind in (Union, UnionType):
        for each in inside:
            try:
                return _taken(value, each, key)
            except UserError as error:
                wrong = wrong if error.key == key else error
        raise wrong
    fits = True
    if kind is Annotated:
        try:
            value = _taken(value, inside[0], key)
        except UserError:
            raise wrong from None
        fits = inside[1] - ROUNDING <= value <= (*inside, math.inf)[2] + ROUNDING
    elif kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        fits = number and -math.inf < value < math.inf
    elif kind in (list, Sequence, Iterable):
        fits = isinstance(value, Iterable) and not isinstance(value, str | bytes)
        fits = fits and (
            kind is Iterable or (hasattr(value, "__getitem__") and not isinstance(value, Mapping))
        )
        value = list(value) if fits and not isinstance(value, list | tuple) else value
        for place, each in enumerate(value if fits else ()):
            _taken(each, inside[0], f"{key}.{place}")
    elif kind is Mapping:
        fits = isinstance(value, Mapping)
        for name, each in (value if fits else {}).items():
            _taken(name, inside[0], key)
            _taken(each, inside[1], f"{key}.{name}")
    elif getattr(kind, "__name__", "") == "ndarray":
        import numpy as np  # takes a tenth of a second, and most commands need no array

        try:
            return np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            fits = False
    elif kind is Callable:
        fits = callable(value)
    elif isinstance(kind, type):
        fits = isinstance(value, kind)
    if not fits:
        raise wrong
    return value


_WORDS = {
    float: "a number",
    int: "a whole number",
    str: "text",
    bool: "True or False",
    NoneType: "None",
    Path: "a path",
}


def _words(hint: Any) -> str:
    kind, inside = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, sorted(inside, key=lambda each: each is NoneType))))
    if kind is Annotated:
        ends = f" from {inside[1]} to {inside[2]}" if len(inside) > 2 else f" of at least {inside[1]}"
        return _words(inside[0]) + ends
    if kind is Mapping:
        return "a mapping such as {name: value}"
    if kind in (list, Sequence, Iterable):
        return "a list of names" if inside[0] is str else "a list"
    if getattr(kind, "__name__", "") == "ndarray":
        return "an array of numbers"
    return _WORDS.get(kind, "a function" if kind is Callable else f"a {getattr(kind, '__name__', kind)}")
