"""Constants of a Python file, read without running it."""

from __future__ import annotations

import ast
from typing import Any


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
