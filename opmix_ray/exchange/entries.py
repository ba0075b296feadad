"""One entry of another trainer's mixture file, and constants of a Python file, which is never run."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SourceWeight:
    """A weight and what it is for.

    Args:
        name: what the file calls it.
        paths: where the file says that its data are; may be empty.
        weight: in the file's own unit.
    """

    name: str
    paths: tuple[str, ...]
    weight: float


def as_weight(value: Any) -> float:
    """A weight as a finite number of at least 0.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"a weight must be a number, not {value!r}")
    found = float(value)
    if not math.isfinite(found) or found < 0:
        raise ValueError(f"a weight must be a finite number of at least 0, not {value!r}")
    return found


def constant(tree: ast.Module, name: str) -> Any:
    """The value of a module's constant of that name; None where it has none that is plain."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            try:
                return ast.literal_eval(node.value)  # type: ignore[attr-defined]
            except ValueError:
                return None
    return None
