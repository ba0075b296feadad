"""Errors that a user can cause, as one line that says where, what and what to do about it.

Raise `UserError` for anything wrong in input; the command line prints it and exits with code 2.
"""

from __future__ import annotations

from typing import Any


class UserError(ValueError):
    """Something in a file, a key or a value that the user can mend.

    Args:
        problem: what is wrong, in words.
        file: the file that holds it, if any.
        key: dotted key inside the file or the name of the option.
        value: the offending value; long values are shortened.
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

    def _line(self) -> str:
        place = ": ".join(part for part in (self.file, self.key) if part)
        if self.value is not None:
            shown = str(self.value)
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            place = f"{place} = {shown}" if place else shown
        line = f"{place}: {self.problem}" if place else self.problem
        if self.remedy:
            line = f"{line}; {self.remedy}"
        return " ".join(line.split())


def _rebuild(problem: str, file: str | None, key: str | None, value: Any, remedy: str | None) -> UserError:
    return UserError(problem, file=file, key=key, value=value, remedy=remedy)


class UserErrors(UserError):
    """Several user errors found in one go; prints one line each."""

    def __init__(self, errors: list[UserError]) -> None:
        self.errors = errors
        ValueError.__init__(self, "\n".join(str(error) for error in errors))

    def __reduce__(self) -> tuple[Any, ...]:
        return UserErrors, (self.errors,)
