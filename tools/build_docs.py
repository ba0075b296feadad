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

One YAML file describes a run. Paths in it are relative to the file. `opmix run FILE --set train.batch_size=8` overrides
a key; entries of a list are counted from 0 (`--set stages.0.steps=100`). A path given there is looked for from where
you are, then beside the file. A heading below is the place of its keys in the file: `learning_rate` under
`train.optimizer` is `train.optimizer.learning_rate`.

`make docs` writes this page from `opmix_ray/config/`; do not edit it.
"""


def sections_of(annotation: Any) -> list[type[Section]]:
    """Configuration sections that a type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in sections_of(part)]


def places() -> dict[type[Section], list[str]]:
    """Every section of a run, with the dotted keys that it stands at: `train.optimizer`, `data.domains.NAME`."""
    found: dict[type[Section], list[str]] = {RunConfig: []}
    queue: list[tuple[type[Section], str]] = [(RunConfig, "")]
    for model, at in queue:
        for name, field in model.model_fields.items():
            for inner in sections_of(field.annotation):
                key = f"{at}{name}{_below(field.annotation)}"
                found.setdefault(inner, []).append(key)
                queue.append((inner, f"{key}."))
    return found


def _below(annotation: Any) -> str:
    """What stands between a key and the section it holds."""
    origin = typing.get_origin(annotation)
    return ".NAME" if origin is dict else ".NUMBER" if origin is list else ""


def type_name(annotation: Any, link: str = "") -> str:
    """A type in the words of a YAML file; `link` is the heading of the section that it is."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in args)
    if origin is typing.Annotated:
        return type_name(args[0], link)
    if origin in (types.UnionType, typing.Union):
        return " \\| ".join(type_name(part, link) for part in args if part is not type(None))
    if origin is list:
        return f"list of {type_name(args[0], link)}"
    if origin is dict:
        return f"mapping of {type_name(args[1], link)}"
    if origin is tuple:
        return f"{len(args)} numbers"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"[section](#{link.replace('.', '').replace(', ', '-').lower()})"
    return {str: "text", int: "integer", float: "number", bool: "true or false", Any: "anything"}[annotation]


def default_of(field: Any) -> str:
    """A field's default as it would stand in YAML."""
    if field.default_factory is not None:
        return "see below" if sections_of(field.annotation) else "empty"
    if field.default is PydanticUndefined:
        return "**required**"
    return "none" if field.default is None else f"`{field.default}`"


def heading(keys: list[str]) -> str:
    """The keys that a section stands at, as its heading."""
    return ", ".join(keys) or "The whole file"


def section(model: type[Section], title: str, known: dict[type[Section], list[str]]) -> str:
    """One section's table."""
    lines = [
        f"\n## {title}\n",
        f"{(model.__doc__ or '').strip()}\n",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in model.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        inner = sections_of(field.annotation)
        kind = type_name(field.annotation, heading(known[inner[0]]) if inner else "")
        lines.append(f"| `{name}` | {kind} | {default_of(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def document() -> str:
    """The whole page."""
    known = places()
    parts = [section(model, heading(keys), known) for model, keys in known.items()]
    return HEAD + "".join(parts) + section(SpaceConfig, "A search space file", known)


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
