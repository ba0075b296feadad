"""What all formats share: entries with weights, constants of a Python file, and where the data of a domain lie."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from typing import Any

from opmix_ray.errors import UserError
from opmix_ray.exchange.handover import Part, without_query
from opmix_ray.paths import BIN, IDX, file_format, is_uri


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


@dataclass(frozen=True)
class Place:
    """A file or directory, and its part of the domain's data by size."""

    path: str
    part: float


def files(part: Part) -> list[Place]:
    """The files of a domain; one that is named by a single plain path need not be there.

    Raises:
        UserError: several, a glob or a directory are named, and they are not reached from here.
    """
    paths = part.where()
    if part.paths:
        return [Place(path, 1 / len(paths)) for path in paths]
    if part.opened is not None:
        total = sum(file.size for file in part.opened.files) or 1
        found = [file for file in part.opened.files if file.size]
        return [Place(without_query(file.path), file.size / total) for file in found]
    if len(paths) > 1 or not _is_file(paths[0]):
        raise UserError(
            "its files are not reached from here, so they cannot be listed",
            key=f"data.domains.{part.name}.path",
            value=", ".join(paths),
            remedy=f"export where they are, or name one with --path {part.name}=FILE",
        )
    return [Place(paths[0], 1.0)]


def _is_file(path: str) -> bool:
    return "*" not in path and file_format(path) is not None


def reader(path: str) -> str | None:
    """The builder of Hugging Face `datasets` that reads a file; None where there is none."""
    if path.endswith(".json"):
        return "json"
    return {
        "jsonl": "json",
        "json": "json",
        "csv": "csv",
        "text": "text",
        "parquet": "parquet",
        "arrow": "arrow",
    }.get(str(file_format(path)))


def prefix(path: str) -> str:
    """A Megatron data set's prefix: the path without `.bin` or `.idx`."""
    return path.removesuffix(BIN).removesuffix(IDX)


def stem(path: str) -> str:
    """A path without its file endings, globs and trailing slash: where a converted copy usually lies."""
    head, name = path.rstrip("/").rpartition("/")[::2]
    while "*" in name or (not name and head):
        head, name = head.rstrip("/").rpartition("/")[::2]
    base = name if name.startswith(".") else name.partition(".")[0]
    return f"{head}/{base}" if head or is_uri(path) or path.startswith("/") else base
