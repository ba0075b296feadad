"""Write docs/configuration.md from the models in opmix_ray/config/; `--check` only compares."""

from __future__ import annotations

import sys
import types
import typing
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from opmix_ray.config import RunConfig, Section
from opmix_ray.trials.space import SpaceConfig

TARGET = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

Made by `make docs` from `opmix_ray/config/`; do not edit. A run is one YAML file. Paths in it are relative to the
file. `opmix run FILE --set train.batch_size=8` overrides a key; list entries are counted from 0
(`--set stages.0.steps=100`).
"""


def sections_of(annotation: Any) -> list[type[Section]]:
    """Configuration sections that a type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in sections_of(part)]


def type_name(annotation: Any) -> str:
    """A type in the words of a YAML file."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(args[0])
    if origin is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in args)
    if origin is typing.Annotated:
        return type_name(args[0])
    if origin in (types.UnionType, typing.Union):
        return " \\| ".join(type_name(part) for part in args if part is not type(None))
    if origin is list:
        return f"list of {type_name(args[0])}"
    if origin is dict:
        return f"mapping of {type_name(args[1])}"
    if origin is tuple:
        return f"{len(args)} numbers"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {str: "text", int: "integer", float: "number", bool: "true or false", Any: "anything"}[annotation]


def default_of(field: Any) -> str:
    """A field's default as it would stand in YAML."""
    if field.default_factory is not None:
        return "see there" if sections_of(field.annotation) else "empty"
    if field.default is PydanticUndefined:
        return "**required**"
    return "none" if field.default is None else f"`{field.default}`"


def section(model: type[Section], title: str) -> str:
    """One section's table."""
    lines = [
        f"\n## {title}\n",
        f"{(model.__doc__ or '').strip()}\n",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in model.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {type_name(field.annotation)} | {default_of(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def document() -> str:
    """The whole page."""
    order: list[type[Section]] = [RunConfig]
    for model in order:
        for field in model.model_fields.values():
            order += [found for found in sections_of(field.annotation) if found not in order]
    parts = [section(model, model.__name__) for model in order]
    return HEAD + "".join(parts) + section(SpaceConfig, "SpaceConfig")


def main() -> None:
    text = document()
    if "--check" in sys.argv:
        if TARGET.read_text() != text:
            sys.exit(f"{TARGET} is out of date: run `make docs`")
        return
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text)


if __name__ == "__main__":
    main()
